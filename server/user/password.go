package user

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"parley.im/parley/server/matrix"
)

// maxPasswordBytes bounds the work of hashing.
const maxPasswordBytes = 1024

// checkPassword applies the password policy.
func (u *Users) checkPassword(password string) error {
	switch {
	case len(password) > maxPasswordBytes:
		return matrix.WeakPassword("a password must not be longer than %d bytes", maxPasswordBytes)
	case utf8.RuneCountInString(password) < u.cfg.MinPasswordLength:
		return matrix.WeakPassword("a password must have at least %d characters", u.cfg.MinPasswordLength)
	}
	return nil
}

// hash makes the PHC string of a password. It waits until a place is free.
func (u *Users) hash(ctx context.Context, password string) (string, error) {
	select {
	case u.hashing <- struct{}{}:
		defer func() { <-u.hashing }()
		return hashPassword(password, u.cfg), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// verify reports whether the password is that of the PHC string, and whether it should be hashed anew because the
// settings have changed.
func (u *Users) verify(ctx context.Context, password, phc string) (right, outdated bool, err error) {
	if len(password) > maxPasswordBytes {
		return false, false, nil
	}
	select {
	case u.hashing <- struct{}{}:
		defer func() { <-u.hashing }()
	case <-ctx.Done():
		return false, false, ctx.Err()
	}
	h, err := parsePHC(phc)
	if err != nil {
		return false, false, err
	}
	key := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.key)))
	right = subtle.ConstantTimeCompare(key, h.key) == 1
	return right, h.time != u.cfg.PasswordTime || h.memory != u.cfg.PasswordMemoryKiB, nil
}

func hashPassword(password string, c Config) string {
	salt := randomBytes(16)
	time, memory := max(1, c.PasswordTime), max(8, c.PasswordMemoryKiB)
	key := argon2.IDKey([]byte(password), salt, time, memory, 1, 32)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, memory, time, b64.EncodeToString(salt), b64.EncodeToString(key))
}

// phc is a parsed argon2id string.
type phc struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

var errPHC = errors.New("not an argon2id hash")

func parsePHC(s string) (h phc, err error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return h, errPHC
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); err != nil {
		return h, errPHC
	}
	b64 := base64.RawStdEncoding.Strict()
	if h.salt, err = b64.DecodeString(parts[4]); err != nil {
		return h, errPHC
	}
	if h.key, err = b64.DecodeString(parts[5]); err != nil || len(h.key) < 16 || h.time == 0 || h.threads == 0 ||
		h.memory > 1<<21 || h.time > 64 {
		return h, errPHC
	}
	return h, nil
}

// randomBytes cannot fail: crypto/rand ends the process instead.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
