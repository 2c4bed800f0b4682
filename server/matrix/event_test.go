package matrix

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func testKey(t testing.TB) *SigningKey {
	t.Helper()
	k, err := NewSigningKey("ed25519:1", []byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestBuiltEventParsesToItself(t *testing.T) {
	for _, v := range RoomVersions() {
		room := RoomID("!room:a.example")
		if v.RoomIDIsCreateID {
			room = "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
		}
		b := Builder{RoomID: room, Sender: "@alice:a.example", Type: TypeMessage,
			Content: []byte(`{ "msgtype":"m.text", "body": "h\u00e9 \"x\"" }`), PrevEvents: []EventID{"$a:b"}, AuthEvents: []EventID{"$a:b", "$c:d"},
			Depth: 3, Time: time.UnixMilli(1700000000000)}
		e, err := b.Build(v, "a.example", testKey(t))
		if err != nil {
			t.Fatal(v, err)
		}
		p, err := ParseEvent(e.JSON(), v)
		if err != nil {
			t.Fatal(v, err)
		}
		if p.Redacted() || p.ID() != e.ID() || !bytes.Equal(p.JSON(), e.JSON()) || len(p.PrevEvents()) != 1 || len(p.AuthEvents()) != 2 {
			t.Errorf("version %s: parsed %s %s", v, p.ID(), p.JSON())
		}
		l, err := LoadEvent(e.JSON(), v, e.ID())
		if err != nil || l.RoomID() != room || l.Sender() != "@alice:a.example" || l.Depth() != 3 {
			t.Errorf("version %s: loaded %v %v", v, l, err)
		}
		// A changed content makes it the redacted event with the same ID.
		changed := strings.Replace(string(e.JSON()), "m.text", "m.note", 1)
		c, err := ParseEvent([]byte(changed), v)
		if err != nil || !c.Redacted() || c.ID() != e.ID() || string(c.Content()) != "{}" {
			t.Errorf("version %s: changed event is %v, %v", v, c, err)
		}
	}
}
