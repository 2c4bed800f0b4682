package room

import (
	"encoding/json"
	"net/netip"
	"strings"

	"parley.im/parley/server/matrix"
)

// ACL is the compiled m.room.server_acl of a room. A nil ACL lets everyone in.
// Spec v1.19 client-server-api/#server-access-control-lists-acls-for-rooms
type ACL struct {
	allow, deny    []string // globs in lower case
	denyIPLiterals bool
}

// parseACL reads the content of m.room.server_acl. What is not a string in a list is left out, and a list that is no list is
// empty: a broken ACL locks everyone out, as the spec has it for a missing allow.
func parseACL(content json.RawMessage) *ACL {
	var raw struct {
		Allow           json.RawMessage `json:"allow"`
		Deny            json.RawMessage `json:"deny"`
		AllowIPLiterals json.RawMessage `json:"allow_ip_literals"`
	}
	_ = json.Unmarshal(content, &raw) // an event's content is always an object
	return &ACL{allow: globList(raw.Allow), deny: globList(raw.Deny), denyIPLiterals: string(raw.AllowIPLiterals) == "false"}
}

func globList(raw json.RawMessage) []string {
	var items []any
	_ = json.Unmarshal(raw, &items)
	var globs []string
	for _, item := range items {
		if s, ok := item.(string); ok {
			globs = append(globs, strings.ToLower(s))
		}
	}
	return globs
}

// Allows reports whether a server may take part.
func (a *ACL) Allows(server matrix.ServerName) bool {
	// 1. If there is no m.room.server_acl event in the room state, allow.
	if a == nil {
		return true
	}
	host := strings.ToLower(server.Host())
	// 2. If the server name is an IP address literal, and allow_ip_literals is present and false, deny.
	if a.denyIPLiterals {
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
			return false
		}
	}
	// 3. If the server name matches an entry in the deny list, deny.
	for _, glob := range a.deny {
		if matchGlob(glob, host) {
			return false
		}
	}
	// 4. If the server name matches an entry in the allow list, allow.
	for _, glob := range a.allow {
		if matchGlob(glob, host) {
			return true
		}
	}
	// 5. Otherwise, deny.
	return false
}

// matchGlob matches * and ? in time linear to len(glob) × len(s) at worst.
// Spec v1.19 appendices/#glob-style-matching
func matchGlob(glob, s string) bool {
	g, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, mark = g, i
			g++
		case g < len(glob) && (glob[g] == '?' || glob[g] == s[i]):
			g++
			i++
		case star >= 0:
			mark++
			g, i = star+1, mark
		default:
			return false
		}
	}
	for g < len(glob) && glob[g] == '*' {
		g++
	}
	return g == len(glob)
}
