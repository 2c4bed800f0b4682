package room

import (
	"encoding/json"
	"testing"

	"parley.im/parley/server/matrix"
)

// FuzzForeignState feeds what other servers may send outside of events: stripped state, space children, ACLs and join rules.
func FuzzForeignState(f *testing.F) {
	f.Add([]byte(`{"type":"m.room.create","state_key":"","sender":"@a:b","content":{"allow":["*"],"via":["a"]},"origin_server_ts":1}`))
	f.Add([]byte(`{"allow":[{"type":"m.room_membership","room_id":"!a:b"}],"deny":["*?*"],"allow_ip_literals":false}`))
	f.Add([]byte(`{"state_key":"!a:b","content":{"via":["a"],"order":"x","suggested":true},"origin_server_ts":1e3}`))
	f.Add([]byte(`[null,1,"",{}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var list []json.RawMessage
		if !json.Valid(cleanStripped([]json.RawMessage{raw, raw})) {
			t.Error("the stripped state is no JSON")
		}
		_ = json.Unmarshal(cleanStripped([]json.RawMessage{raw}), &list)
		for _, link := range childLinks([]json.RawMessage{raw}) {
			if _, err := matrix.ParseRoomID(string(link.room)); err != nil || len(link.via) == 0 {
				t.Errorf("a child that is none: %+v", link)
			}
		}
		parseACL(raw).Allows("example.org:8448")
		for _, room := range allowedRooms(raw) {
			if _, err := matrix.ParseRoomID(string(room)); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzTokens feeds what clients may send as tokens.
func FuzzTokens(f *testing.F) {
	f.Add(listToken('n', RoomSummary{RoomID: "!a:b", NumJoinedMembers: 3}))
	f.Add(hierarchyToken(3, true, 4))
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		if at, backwards, err := parseListToken(token); err == nil && token != "" {
			kind := byte('n')
			if backwards {
				kind = 'p'
			}
			if again, _, err := parseListToken(listToken(kind, at)); err != nil || compareListed(again, at) != 0 {
				t.Errorf("%+v becomes %+v, %v", at, again, err)
			}
		}
		if skip, err := parseHierarchyToken(token, true, 4); err == nil && (skip < 0 || skip > maxHierarchyRooms) {
			t.Errorf("skips %d", skip)
		}
	})
}
