package media

import (
	"crypto/rand"
	"encoding/base64"
	"strings"

	"parley.im/parley/server/matrix"
)

// A URI names a file: mxc://server/mediaID. Spec v1.19 client-server-api/#matrix-content-mxc-uris
type URI struct {
	Server  matrix.ServerName
	MediaID string
}

// String writes the URI with its scheme.
func (u URI) String() string { return "mxc://" + string(u.Server) + "/" + u.MediaID }

// ParseURI reads an mxc:// URI. The error is M_INVALID_PARAM.
func ParseURI(s string) (URI, error) {
	rest, ok := strings.CutPrefix(s, "mxc://")
	server, mediaID, found := strings.Cut(rest, "/")
	if !ok || !found {
		return URI{}, matrix.InvalidParam("a content URI is mxc://server/media_id")
	}
	return NewURI(server, mediaID)
}

// NewURI checks the two parts of a URI as they stand in a path. The error is M_INVALID_PARAM.
func NewURI(server, mediaID string) (URI, error) {
	name, err := matrix.ParseServerName(server)
	if err != nil {
		return URI{}, matrix.InvalidParam("that is not the name of a server in a content URI")
	}
	if !ValidMediaID(mediaID) {
		return URI{}, matrix.InvalidParam("a media ID has 1 to 255 letters, digits, - and _")
	}
	return URI{name, mediaID}, nil
}

// ValidMediaID tells whether s is a media ID by the spec's grammar, which also keeps it from meaning anything in a path.
// Spec v1.19 client-server-api/#content-repo-security-considerations
func ValidMediaID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return 0 < len(s) && len(s) <= 255
}

// newMediaID makes an ID that cannot be guessed: knowing it is all that one needs to read the file.
func newMediaID() string {
	var b [18]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}
