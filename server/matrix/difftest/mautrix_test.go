//go:build goexperiment.jsonv2

package difftest

import (
	"encoding/base64"
	"encoding/json/v2"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/federation/eventauth"
	"maunium.net/go/mautrix/federation/pdu"
	"maunium.net/go/mautrix/id"
	"parley.im/parley/server/matrix"
)

// mautrixRoom keeps mautrix-go's reading of a room's events.
type mautrixRoom struct {
	*room
	version id.RoomVersion
	pdus    map[matrix.EventID]*pdu.PDU
}

func newMautrix(m *room) *mautrixRoom {
	return &mautrixRoom{room: m, version: id.RoomVersion(m.version.ID), pdus: map[matrix.EventID]*pdu.PDU{}}
}

func (a *mautrixRoom) pdu(e *matrix.Event) *pdu.PDU {
	if p := a.pdus[e.ID()]; p != nil {
		return p
	}
	p := new(pdu.PDU)
	if err := json.Unmarshal(e.JSON(), p); err != nil {
		a.t.Fatalf("mautrix does not take %s: %v", e.JSON(), err)
	}
	p.InternalMeta.EventID = id.EventID(e.ID())
	a.pdus[e.ID()] = p
	return p
}

func (a *mautrixRoom) signingKey(string, id.KeyID, time.Time) (id.SigningKey, time.Time, error) {
	return id.SigningKey(base64.RawStdEncoding.EncodeToString(a.key.Public().Bytes())), time.UnixMilli(1 << 50), nil
}

func TestEventsAreThoseOfMautrix(t *testing.T) {
	eachRoom(t, allVersions[2:], func(m *room) {
		a := newMautrix(m)
		m.built = func(e *matrix.Event) {
			p := a.pdu(e)
			if theirs, err := p.GetEventID(a.version); err != nil || string(theirs) != string(e.ID()) {
				t.Errorf("version %s: %s, there %s, %v", a.version, e.ID(), theirs, err)
			}
			if !p.VerifyContentHash() {
				t.Errorf("version %s: the content hash of %s is not that of mautrix", a.version, e.JSON())
			}
			if err := p.VerifySignature(a.version, string(e.Sender().Server()), a.signingKey); err != nil {
				t.Errorf("version %s: the signature of %s is not valid in mautrix: %v", a.version, e.JSON(), err)
			}
		}
	})
}

func TestVerdictsAreThoseOfMautrix(t *testing.T) {
	eachRoom(t, allVersions[2:], func(m *room) {
		a := newMautrix(m)
		m.tried = func(e *matrix.Event, state matrix.StateLookup, ours error) {
			auth := []*pdu.PDU{}
			keys := e.AuthKeys()
			for _, k := range keys {
				if x := state(k.Type, k.StateKey); x != nil {
					auth = append(auth, a.pdu(x))
				}
			}
			create := func(ids []id.EventID) ([]*pdu.PDU, error) {
				if len(ids) == 1 && matrix.EventID(ids[0]) == m.create.ID() {
					return []*pdu.PDU{a.pdu(m.create)}, nil
				}
				return nil, fmt.Errorf("unexpected question for %v", ids)
			}
			theirs := eventauth.Authorize(a.version, a.pdu(e), auth, create, a.signingKey)
			if (ours == nil) != (theirs == nil) && !a.knownVerdict(e, ours, theirs) {
				t.Errorf("version %s: %s\nours   %v\ntheirs %v\nstate %s", a.version, e.JSON(), ours, theirs, authState(keys, state))
			}
		}
	})
}

// knownVerdict tells the case in which mautrix is known to be wrong. rooms/v3/#authorisation-rules 10.4 and 10.5 speak of
// "the events property" alone; room version 6 adds notifications. mautrix looks at them in all versions.
func (a *mautrixRoom) knownVerdict(e *matrix.Event, ours, theirs error) bool {
	return ours == nil && e.Is(matrix.TypePowerLevels, "") && !a.room.version.NotificationsPowers &&
		errors.Is(theirs, eventauth.ErrInvalidPowerChange) && strings.Contains(theirs.Error(), "notifications.")
}

func TestFaultOfMautrixInVerdicts(t *testing.T) {
	m := newRoom(t, matrix.LookupRoomVersion("3"), 1)
	a := newMautrix(m)
	m.id = "!room:a.example"
	auth := []*pdu.PDU{
		a.pdu(m.make(event{"@alice:a.example", matrix.TypeCreate, "", `{"creator":"@alice:a.example"}`})),
		a.pdu(m.make(event{"@alice:a.example", matrix.TypeMember, "@alice:a.example", `{"membership":"join"}`})),
		a.pdu(m.make(event{"@alice:a.example", matrix.TypePowerLevels, "", `{"users":{"@alice:a.example":60}}`})),
	}
	e := a.pdu(m.make(event{"@alice:a.example", matrix.TypePowerLevels, "", `{"users":{"@alice:a.example":60},"notifications":{"room":61}}`}))
	if err := eventauth.Authorize(a.version, e, auth, nil, a.signingKey); !errors.Is(err, eventauth.ErrInvalidPowerChange) {
		t.Errorf("it has been mended: %v", err)
	}
}
