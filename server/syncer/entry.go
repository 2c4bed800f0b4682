package syncer

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"
	"sync"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// entry is one event of a timeline, as it is written for everybody. It does not change, but for what is worked out when
// first asked for.
type entry struct {
	pos, num int64
	ev       *matrix.Event
	// client is the event for clients without what differs from reader to reader: age, transaction_id and membership.
	client []byte
	// unsigned reports whether client has an object "unsigned", which is the last of its members then.
	unsigned bool
	// stale: the event was redacted since; client is nil and the event must be read anew.
	stale bool
	// read: it was read for one reader, and client is complete.
	read bool
	// linear: its only predecessor in the graph is the one in the window, so that it alone made the state what it is.
	linear bool
	// straight: the state before it is the one that the room had then. Whoever was in the room then may see it.
	straight bool
	// device and txnID say which device sent it with which transaction ID; empty if not known to have been one of ours.
	device matrix.DeviceID
	txnID  string

	prepared struct {
		sync.Mutex
		gapKnown, gap bool // whether it follows an event that this server does not have

		done   bool
		thread matrix.EventID // root of its thread; "" for the main timeline
		event  *push.Prepared
	}
}

func newEntry(e *storage.CommittedEvent) *entry {
	return &entry{
		pos: e.Pos, num: e.Num, ev: e.Event, client: e.Client, unsigned: hasUnsigned(e.Client),
		device: e.Device, txnID: e.TxnID, straight: e.Straight,
	}
}

// hasUnsigned reports whether the event ends with a member "unsigned" that is an object.
func hasUnsigned(client []byte) bool {
	if !bytes.HasSuffix(client, []byte("}}")) || !bytes.Contains(client, []byte(`"unsigned":{`)) {
		return false
	}
	var top struct {
		Unsigned json.RawMessage `json:"unsigned"`
	}
	if json.Unmarshal(client, &top) != nil || len(top.Unsigned) == 0 {
		return false
	}
	return bytes.HasSuffix(client[:len(client)-1], top.Unsigned) &&
		bytes.HasSuffix(client[:len(client)-1-len(top.Unsigned)], []byte(`"unsigned":`))
}

// appendTo writes the event for one reader. membership is the reader's at the event, "" to leave it out.
func (e *entry) appendTo(b []byte, user matrix.UserID, device matrix.DeviceID, nowMS int64, membership string) []byte {
	end := 1
	if e.unsigned {
		end = 2
	}
	b = append(b, e.client[:len(e.client)-end]...)
	if e.unsigned {
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
	} else {
		b = append(b, `,"unsigned":{`...)
	}
	b = append(b, `"age":`...)
	b = strconv.AppendInt(b, nowMS-e.ev.OriginServerTS(), 10)
	if membership != "" {
		b = append(b, `,"membership":"`...)
		b = append(b, membership...)
		b = append(b, '"')
	}
	if e.txnID != "" && e.device == device && e.ev.Sender() == user {
		b = append(b, `,"transaction_id":`...)
		b = appendString(b, e.txnID)
	}
	return append(b, '}', '}')
}

// afterGap reports whether the event follows one that this server does not have, or did not have when it was first asked.
func (e *entry) afterGap(ctx context.Context, s *Service) (bool, error) {
	if e.linear {
		return false, nil
	}
	p := &e.prepared
	p.Lock()
	defer p.Unlock()
	if !p.gapKnown {
		r, err := s.o.Rooms.Room(ctx, e.ev.RoomID())
		if err != nil {
			return false, err
		}
		gaps, err := s.o.DB.AfterGaps(ctx, r.Num, []int64{e.num})
		if err != nil {
			return false, err
		}
		p.gapKnown, p.gap = true, gaps[e.num]
	}
	return p.gap, nil
}

// hasURL reports whether the event's content has a "url".
func (e *entry) hasURL() bool { return contentHasURL(e.ev) }

func contentHasURL(ev *matrix.Event) bool {
	var content map[string]json.RawMessage
	if json.Unmarshal(ev.Content(), &content) != nil {
		return false
	}
	_, ok := content["url"]
	return ok
}

func appendString(b []byte, s string) []byte { return matrix.AppendJSONString(b, s) }

// entries makes entries of stored events, as the reader of the answer gets them.
func (a *answer) entries(ctx context.Context, events []*storage.Event) ([]*entry, error) {
	if len(events) == 0 {
		return nil, nil
	}
	clients, err := a.s.o.Rooms.Clients(ctx, events, room.Reader{User: a.r.User, Device: a.r.Device, OmitRoomID: true})
	if err != nil {
		return nil, err
	}
	out := make([]*entry, len(events))
	for i, e := range events {
		out[i] = &entry{pos: e.Pos, num: e.Num, ev: e.Event, client: clients[i], read: true}
	}
	return out, nil
}
