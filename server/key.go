package main

import (
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"parley.im/parley/federation"
	"parley.im/parley/server/matrix"
)

// Files in the data directory.
const (
	signingKeyFile  = "signing.key"
	retiredKeysFile = "retired.keys"
)

// loadSigningKey reads the server's signing key, or makes one at the first start. Whoever has this key can speak for the
// server, so the file is readable by its owner only.
func loadSigningKey(dir string, log *slog.Logger) (*matrix.SigningKey, error) {
	path := filepath.Join(dir, signingKeyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeSigningKey(path, log)
	}
	if err != nil {
		return nil, err
	}
	stat, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if stat.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others: run chmod 600 %s", path, path)
	}
	key, err := matrix.ParseSigningKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from a backup, since other servers know this server by it", path, err)
	}
	return key, nil
}

func makeSigningKey(path string, log *slog.Logger) (*matrix.SigningKey, error) {
	key, err := newSigningKey()
	if err != nil {
		return nil, err
	}
	if err := writeKeyFile(path, key.Format()); err != nil {
		return nil, err
	}
	log.Info("made the signing key", "file", path)
	return key, nil
}

func newSigningKey() (*matrix.SigningKey, error) {
	seed := make([]byte, 32)
	if _, err := rand.Read(seed); err != nil {
		return nil, err
	}
	id, err := matrix.ParseKeyID("ed25519:" + rand.Text()[:8])
	if err != nil {
		return nil, err
	}
	return matrix.NewSigningKey(id, seed)
}

// writeKeyFile writes aside and renames, so that a crash never leaves half a file, and is durable when it returns.
func writeKeyFile(path string, content []byte) error {
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

const rotateUsage = `usage: parley rotate-key [-config FILE]

Gives the server a new signing key. The old one is published as expired now, so that what it has signed stays valid; its
private half is deleted. Stop the server first.
`

// commandRotateKey replaces the signing key. A crash in the middle leaves the old key in use, and the command can be run
// again.
// Spec v1.19 server-server-api/#publishing-keys
func commandRotateKey(args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("rotate-key", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), rotateUsage); flags.PrintDefaults() }
	path := configFlag(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg, _, err := loadConfig(configPath(*path))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, signingKeyFile)); err != nil {
		return fmt.Errorf("there is no key to replace (the server makes one at its first start): %w", err)
	}
	lock, err := lockDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	old, next, err := rotateKey(cfg.DataDir, time.Now())
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s signs from now on instead of %s. Start the server again; put %s and %s into the next backup.\n",
		next, old, signingKeyFile, retiredKeysFile)
	return nil
}

// rotateKey retires the signing key in dir at now and makes a new one.
func rotateKey(dir string, now time.Time) (old, next matrix.KeyID, err error) {
	key, err := loadSigningKey(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", "", err
	}
	retired, err := loadRetiredKeys(dir, key.ID)
	if err != nil {
		return "", "", err
	}
	retired = append(retired, federation.OldKey{ID: key.ID, Key: key.Public(), ExpiredAt: now})
	var file []byte
	for _, k := range retired {
		file = fmt.Appendf(file, "%s %s %d\n", k.ID, k.Key, k.ExpiredAt.UnixMilli())
	}
	if err := writeKeyFile(filepath.Join(dir, retiredKeysFile), file); err != nil {
		return "", "", err
	}
	made, err := newSigningKey()
	if err != nil {
		return "", "", err
	}
	return key.ID, made.ID, writeKeyFile(filepath.Join(dir, signingKeyFile), made.Format())
}

// loadRetiredKeys reads the public halves of the keys this server has signed with before: a line each of ID, key in
// base64 and the time it was retired, in milliseconds since 1970. The key still in use is left out: it is there when a
// rotation was broken off.
func loadRetiredKeys(dir string, inUse matrix.KeyID) ([]federation.OldKey, error) {
	path := filepath.Join(dir, retiredKeysFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var keys []federation.OldKey
	for n, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		key, err := parseRetiredKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n+1, err)
		}
		if key.ID != inUse {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func parseRetiredKey(line string) (federation.OldKey, error) {
	words := strings.Fields(line)
	if len(words) != 3 {
		return federation.OldKey{}, errors.New("a retired key is a line of three words: ed25519:IDENTIFIER KEY MILLISECONDS")
	}
	id, err := matrix.ParseKeyID(words[0])
	if err != nil {
		return federation.OldKey{}, err
	}
	key, err := matrix.ParsePublicKey(words[1])
	if err != nil {
		return federation.OldKey{}, err
	}
	at, err := strconv.ParseInt(words[2], 10, 64)
	if err != nil || at <= 0 {
		return federation.OldKey{}, fmt.Errorf("%q is not a time in milliseconds since 1970", words[2])
	}
	return federation.OldKey{ID: id, Key: key, ExpiredAt: time.UnixMilli(at)}, nil
}

// lockDir keeps two processes from using one data directory. The lock goes with the process.
func lockDir(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another Parley: stop that one first, or set data_dir to another directory", dir), file.Close())
	}
	return file, nil
}
