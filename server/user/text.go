package user

import (
	"strings"
	"unicode/utf8"

	"parley.im/parley/server/matrix"
)

// maxDeviceName is how long a device's display name may be, in bytes; longer ones are cut.
const maxDeviceName = 400

// clean makes foreign text storable: valid UTF-8 without NUL, which PostgreSQL refuses, and at most max bytes.
func clean(s string, max int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "")
	if len(s) <= max {
		return s
	}
	for max > 0 && !utf8.RuneStart(s[max]) {
		max--
	}
	return s[:max]
}

// clip shortens foreign text for an error message.
func clip(s string) string { return clean(s, 64) }

// checkName checks a name that a client chose and that becomes part of a key in the database.
func checkName(what, s string, max int) error {
	switch {
	case s == "":
		return matrix.InvalidParam("%s must not be empty", what)
	case len(s) > max:
		return matrix.InvalidParam("%s must not be longer than %d bytes", what, max)
	case !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0:
		return matrix.InvalidParam("%s is not valid text", what)
	}
	return nil
}
