package matrix

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// maxIDBytes is the longest identifier, sigil and server name included.
const maxIDBytes = 255

type (
	// UserID is "@localpart:server". A value made by [ParseUserID] may hold a historical localpart.
	UserID string
	// RoomID is "!localpart:server" up to room version 11 and "!hash" from 12 on.
	RoomID string
	// EventID is "$localpart:server" in room versions 1 and 2 and "$hash" from 3 on.
	EventID string
	// RoomAlias is "#localpart:server".
	RoomAlias string
	// ServerName is a host name or IP literal with an optional port; it is case-sensitive.
	ServerName string
	// DeviceID is opaque, at most 255 bytes.
	DeviceID string
	// KeyID is "algorithm:identifier", for example "ed25519:auto".
	KeyID string
)

// ParseServerName checks the grammar of a server name: IPv4, [IPv6] or a DNS name, with an optional port.
// Spec v1.19 appendices/#server-name
func ParseServerName(s string) (ServerName, error) {
	host, port := splitPort(s)
	if port != "" && (len(port) > 6 || !allDigits(port[1:]) || len(port) == 1) {
		return "", idError("server name", s, "the port is not a number of 1 to 5 digits")
	}
	switch {
	case host == "" || len(s) > maxIDBytes:
		return "", idError("server name", s, "it must be 1 to 255 bytes long")
	case host[0] == '[':
		if len(host) < 4 || host[len(host)-1] != ']' {
			return "", idError("server name", s, "the IPv6 address has no closing bracket")
		}
		addr, err := netip.ParseAddr(host[1 : len(host)-1])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", idError("server name", s, "not an IPv6 address")
		}
	default:
		for i := 0; i < len(host); i++ {
			if !isDNSChar(host[i]) {
				return "", idError("server name", s, "a host name consists of letters, digits, '-' and '.'")
			}
		}
	}
	return ServerName(s), nil
}

// Host is the server name without its port; an IPv6 address keeps its brackets.
func (s ServerName) Host() string {
	host, _ := splitPort(string(s))
	return host
}

// Port is the port of the server name without the colon, or "" if it names none.
func (s ServerName) Port() string {
	_, port := splitPort(string(s))
	return strings.TrimPrefix(port, ":")
}

// splitPort cuts a server name into its host and its port; the port keeps its colon and is "" without one.
func splitPort(s string) (host, port string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.IndexByte(s[i:], ']') >= 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

// ParseUserID accepts every user ID that may occur in an event, historical ones included.
// For IDs that this server makes, see [NewUserID]. Spec v1.19 appendices/#historical-user-ids
func ParseUserID(s string) (UserID, error) {
	if err := checkID("user ID", '@', s); err != nil {
		return "", err
	}
	return UserID(s), nil
}

// NewUserID makes the ID of a user of server. The localpart must be of today's grammar: a-z, 0-9 and "._=-/+",
// not empty. Spec v1.19 appendices/#user-identifiers
func NewUserID(localpart string, server ServerName) (UserID, error) {
	if localpart == "" {
		return "", InvalidUsername("a user name must not be empty")
	}
	for i := 0; i < len(localpart); i++ {
		if c := localpart[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("._=-/+", c) >= 0) {
			return "", InvalidUsername("a user name may contain only a-z, 0-9 and . _ = - / +")
		}
	}
	if 2+len(localpart)+len(server) > maxIDBytes {
		return "", InvalidUsername("the user ID would be longer than 255 bytes")
	}
	return UserID("@" + localpart + ":" + string(server)), nil
}

// Localpart is what stands between the sigil and the first colon.
func (u UserID) Localpart() string { l, _ := splitID(string(u)); return l }

// Server is the server that allocated the user ID.
func (u UserID) Server() ServerName { _, s := splitID(string(u)); return s }

// Compliant reports whether the localpart is not empty and within U+0021 to U+007E. Other user IDs are accepted in
// events only and not shown to clients elsewhere. Spec v1.19 appendices/#historical-user-ids
func (u UserID) Compliant() bool {
	l := u.Localpart()
	for i := 0; i < len(l); i++ {
		if l[i] < 0x21 || l[i] > 0x7e {
			return false
		}
	}
	return l != ""
}

// ParseRoomID accepts room IDs of all versions: with a server name, or the 43 letters of a hash alone.
// Spec v1.19 appendices/#room-ids
func ParseRoomID(s string) (RoomID, error) {
	if strings.IndexByte(s, ':') < 0 {
		if !isHashID('!', s) {
			return "", idError("room ID", s, "neither !localpart:server nor ! and a hash")
		}
		return RoomID(s), nil
	}
	if err := checkID("room ID", '!', s); err != nil {
		return "", err
	}
	return RoomID(s), nil
}

// Server is the server name in the room ID, "" in room version 12. It says nothing about who is in the room.
func (r RoomID) Server() ServerName { _, s := splitID(string(r)); return s }

// CreateEventID is the ID of the room's create event in rooms whose ID has no server name (version 12 on), else "".
func (r RoomID) CreateEventID() EventID {
	if len(r) == 0 || strings.IndexByte(string(r), ':') >= 0 {
		return ""
	}
	return EventID("$" + string(r[1:]))
}

// ParseEventID accepts event IDs of all room versions. Spec v1.19 appendices/#event-ids
func ParseEventID(s string) (EventID, error) {
	if len(s) < 2 || s[0] != '$' || len(s) > maxIDBytes {
		return "", idError("event ID", s, "it must be '$' and 1 to 254 bytes more")
	}
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return "", idError("event ID", s, "it is not valid UTF-8 text")
	}
	return EventID(s), nil
}

// Server is the server name in an event ID of room version 1 or 2, else "".
func (e EventID) Server() ServerName { _, s := splitID(string(e)); return s }

// ParseRoomAlias checks the grammar of a room alias. Spec v1.19 appendices/#room-aliases
func ParseRoomAlias(s string) (RoomAlias, error) {
	if err := checkID("room alias", '#', s); err != nil {
		return "", err
	}
	return RoomAlias(s), nil
}

// Localpart is what stands between the sigil and the first colon.
func (a RoomAlias) Localpart() string { l, _ := splitID(string(a)); return l }

// Server is the server that the alias belongs to.
func (a RoomAlias) Server() ServerName { _, s := splitID(string(a)); return s }

// ParseDeviceID accepts 1 to 255 bytes of valid UTF-8 without control characters.
func ParseDeviceID(s string) (DeviceID, error) {
	if s == "" || len(s) > maxIDBytes || !utf8.ValidString(s) {
		return "", idError("device ID", s, "it must be 1 to 255 bytes of UTF-8")
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return "", idError("device ID", s, "it contains a control character")
		}
	}
	return DeviceID(s), nil
}

// ParseKeyID checks "algorithm:identifier", both parts not empty.
// Spec v1.19 appendices/#signing-details
func ParseKeyID(s string) (KeyID, error) {
	i := strings.IndexByte(s, ':')
	if i <= 0 || i == len(s)-1 || len(s) > maxIDBytes || !utf8.ValidString(s) {
		return "", idError("key ID", s, "it is not algorithm:identifier")
	}
	return KeyID(s), nil
}

// Algorithm is what stands before the colon, for example "ed25519".
func (k KeyID) Algorithm() string {
	a, _, _ := strings.Cut(string(k), ":")
	return a
}

// Identifier is what stands after the first colon.
func (k KeyID) Identifier() string {
	_, id, _ := strings.Cut(string(k), ":")
	return id
}

// checkID checks "sigil localpart ':' server name" in its historical latitude: any text without NUL and colon.
func checkID(kind string, sigil byte, s string) error {
	switch {
	case len(s) == 0 || s[0] != sigil:
		return idError(kind, s, fmt.Sprintf("it must start with %q", sigil))
	case len(s) > maxIDBytes:
		return idError(kind, s[:32]+"…", "it is longer than 255 bytes")
	}
	colon := strings.IndexByte(s, ':')
	if colon < 0 {
		return idError(kind, s, "it has no server name")
	}
	if !utf8.ValidString(s[:colon]) || strings.IndexByte(s[:colon], 0) >= 0 {
		return idError(kind, s, "its localpart is not valid UTF-8 text")
	}
	if _, err := ParseServerName(s[colon+1:]); err != nil {
		return idError(kind, s, "its server name is not valid")
	}
	return nil
}

// splitID cuts an ID that has been checked; server is "" if there is none.
func splitID(s string) (localpart string, server ServerName) {
	if s == "" {
		return "", ""
	}
	colon := strings.IndexByte(s, ':')
	if colon < 0 {
		return s[1:], ""
	}
	return s[1:colon], ServerName(s[colon+1:])
}

// isHashID reports whether s is the sigil and the 43 letters of an unpadded base64 SHA-256, URL-safe alphabet.
func isHashID(sigil byte, s string) bool {
	if len(s) != 44 || s[0] != sigil {
		return false
	}
	for i := 1; i < len(s); i++ {
		if c := s[i]; !(isAlnum(c) || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool   { return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' }
func isDNSChar(c byte) bool { return isAlnum(c) || c == '-' || c == '.' }

func allDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func idError(kind, s, why string) error {
	if len(s) > maxIDBytes {
		s = s[:32] + "…"
	}
	return InvalidParam("%q is not a valid %s: %s", strings.ToValidUTF8(s, "\ufffd"), kind, why)
}
