package syncer

import (
	"strconv"
	"strings"

	"parley.im/parley/server/matrix"
)

// Token is a point in everything that a client may be told: "s" and the position in the global stream, then, each after
// an underscore, what does not lie in the stream. rooms read only the first number.
type Token struct {
	// Pos is the position in the global stream.
	Pos int64
	// Eph counts changes of typing and presence, which live in memory. It starts at the process' start in milliseconds,
	// so that it never goes backwards.
	Eph int64
	// ToDevice is the position of the last to-device message told, where there were more than fit into one answer.
	// Otherwise it equals Pos and is left out.
	ToDevice int64
}

// ParseToken reads what [Token.String] wrote. A token of an older shape, or of another process, is read as well.
func ParseToken(s string) (Token, error) {
	bad := matrix.InvalidParam("since is not a token that this server gave out")
	digits, ok := strings.CutPrefix(s, "s")
	if !ok || len(s) > 64 {
		return Token{}, bad
	}
	var t Token
	for i, part := range strings.SplitN(digits, "_", 3) {
		n, err := strconv.ParseInt(part, 10, 64)
		if err != nil || n < 0 || part[0] == '+' {
			return Token{}, bad
		}
		switch i {
		case 0:
			t.Pos, t.ToDevice = n, n
		case 1:
			t.Eph = n
		case 2:
			t.ToDevice = n
		}
	}
	return t, nil
}

// String is the token as clients get it.
func (t Token) String() string { return string(t.append(nil)) }

func (t Token) append(b []byte) []byte {
	b = append(b, 's')
	b = strconv.AppendInt(b, t.Pos, 10)
	if t.Eph != 0 || t.ToDevice != t.Pos {
		b = append(b, '_')
		b = strconv.AppendInt(b, t.Eph, 10)
	}
	if t.ToDevice != t.Pos {
		b = append(b, '_')
		b = strconv.AppendInt(b, t.ToDevice, 10)
	}
	return b
}
