package federation

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Limits of a transaction. Spec v1.19 server-server-api/#transactions
const (
	maxPDUs = 50
	maxEDUs = 100
	// transactionTimeout bounds the work on one, which goes on when the sender hangs up.
	transactionTimeout = 4 * time.Minute
	// rememberedTransactions is how many answers are kept for senders that ask again.
	rememberedTransactions = 2000
)

// transactions remembers the answers given, by origin and transaction ID, so that one that comes again, or twice at the
// same time, is worked on once. A restart forgets them, which does no harm: events are known by their IDs and to-device
// messages by theirs.
type transactions struct {
	mu    sync.Mutex // guards the rest
	byKey map[transactionKey]*doneTransaction
	order []transactionKey
}

type transactionKey struct {
	origin matrix.ServerName
	id     string
}

type doneTransaction struct {
	done   chan struct{} // closed when the rest is set
	answer []byte
	err    error
}

// once runs work for key unless that has been done or is being done. A failure is not remembered.
func (t *transactions) once(ctx context.Context, key transactionKey, work func() ([]byte, error)) ([]byte, error) {
	t.mu.Lock()
	if known := t.byKey[key]; known != nil {
		t.mu.Unlock()
		select {
		case <-known.done:
			return known.answer, known.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if t.byKey == nil {
		t.byKey = map[transactionKey]*doneTransaction{}
	}
	mine := &doneTransaction{done: make(chan struct{}), err: errors.New("the transaction broke off")}
	t.byKey[key] = mine
	t.order = append(t.order, key)
	if len(t.order) > rememberedTransactions {
		delete(t.byKey, t.order[0])
		t.order = t.order[1:]
	}
	t.mu.Unlock()
	defer func() {
		if mine.err != nil {
			t.mu.Lock()
			if t.byKey[key] == mine {
				delete(t.byKey, key)
			}
			t.mu.Unlock()
		}
		close(mine.done)
	}()
	mine.answer, mine.err = work()
	return mine.answer, mine.err
}

// edu is an EDU in a transaction.
type edu struct {
	Type    string          `json:"edu_type"`
	Content json.RawMessage `json:"content"`
}

// Spec v1.19 server-server-api/#put_matrixfederationv1sendtxnid
func (c *call) transaction() (any, error) {
	id, err := c.param("txnID")
	if err != nil {
		return nil, err
	}
	var body struct {
		Origin matrix.ServerName `json:"origin"`
		PDUs   []json.RawMessage `json:"pdus"`
		EDUs   []edu             `json:"edus"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if body.Origin != "" && body.Origin != c.origin {
		return nil, matrix.Forbidden("the transaction's origin is not the server that sent it")
	}
	if len(body.PDUs) > maxPDUs || len(body.EDUs) > maxEDUs {
		return nil, matrix.InvalidParam("more than %d PDUs or %d EDUs", maxPDUs, maxEDUs)
	}
	return c.h.txns.once(c.ctx(), transactionKey{c.origin, id}, func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx()), transactionTimeout)
		defer cancel()
		return c.h.receive(ctx, c.origin, body.PDUs, body.EDUs)
	})
}

// receive works on a transaction. Keys and to-device messages go first: events may need them to be decrypted. Receipts
// go last, since they are about events.
func (h *handler) receive(ctx context.Context, origin matrix.ServerName, pdus []json.RawMessage, edus []edu) ([]byte, error) {
	h.Client.metrics.received(len(pdus), len(edus))
	for _, e := range edus {
		if deliver := h.durableEDU(e.Type); deliver != nil {
			if err := h.deliver(ctx, origin, e, deliver); err != nil {
				return nil, err // not lost: the sender tries again
			}
		}
	}
	results := map[matrix.EventID]any{}
	if len(pdus) > 0 {
		for id, err := range h.Rooms.Receive(ctx, origin, pdus) {
			results[id] = struct{}{}
			if err != nil {
				results[id] = map[string]string{"error": reason(err)}
			}
		}
	}
	for _, e := range edus {
		if deliver := h.ephemeralEDU(e.Type); deliver != nil {
			if err := h.deliver(ctx, origin, e, deliver); err != nil {
				h.log.Error("take in an EDU", "server", origin, "type", e.Type, "err", err)
			}
		}
	}
	return encode(map[string]any{"pdus": results})
}

// reason is what the other server may know of why an event was not taken.
func reason(err error) string {
	var known *matrix.Error
	var auth *matrix.AuthError
	switch {
	case errors.As(err, &known):
		return known.Message
	case errors.As(err, &auth):
		return auth.Error()
	}
	return "the event was not accepted"
}

type receiver func(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error

// durableEDU is who takes an EDU that must not be lost; nil for other types.
func (h *handler) durableEDU(typ string) receiver {
	switch typ {
	case "m.direct_to_device":
		return h.Keys.ReceiveDirectToDevice
	case "m.device_list_update":
		return h.Keys.ReceiveDeviceListUpdate
	case "m.signing_key_update", "org.matrix.signing_key_update":
		return h.Keys.ReceiveSigningKeyUpdate
	case storage.PlayedType:
		return h.receivePlayed
	}
	return nil
}

// ephemeralEDU is who takes an EDU that the next one makes good; nil for other types.
func (h *handler) ephemeralEDU(typ string) receiver {
	switch typ {
	case "m.typing":
		return h.receiveTyping
	case "m.receipt":
		return h.receiveReceipts
	case "m.presence":
		if h.cfg.Presence {
			return h.Sync.ReceivePresence
		}
	}
	return nil
}

// deliver keeps bad EDUs from failing the transaction: the sender would send them again for ever.
func (h *handler) deliver(ctx context.Context, origin matrix.ServerName, e edu, to receiver) error {
	err := to(ctx, origin, e.Content)
	if known := new(matrix.Error); errors.As(err, &known) && known.Status < 500 {
		h.log.Debug("EDU refused", "server", origin, "type", e.Type, "err", err)
		return nil
	}
	return err
}

// receiveTyping applies the room's ACL. Spec v1.19 server-server-api/#server-access-control-lists-acls
func (h *handler) receiveTyping(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var typing struct {
		Room matrix.RoomID `json:"room_id"`
	}
	if err := json.Unmarshal(content, &typing); err != nil {
		return matrix.BadJSON("typing: it has the wrong shape")
	}
	if !h.Rooms.ServerAllowed(ctx, typing.Room, origin) {
		return matrix.Forbidden("the room's ACL does not let you in")
	}
	return h.Sync.ReceiveTyping(ctx, origin, content)
}

// receivePlayed applies the room's ACL to what is told of voice messages, which only Parley knows.
func (h *handler) receivePlayed(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var played struct {
		Room matrix.RoomID `json:"room_id"`
	}
	if err := json.Unmarshal(content, &played); err != nil {
		return matrix.BadJSON("%s: it has the wrong shape", storage.PlayedType)
	}
	if !h.Rooms.ServerAllowed(ctx, played.Room, origin) {
		return matrix.Forbidden("the room's ACL does not let you in")
	}
	return h.Voice.ReceivePlayed(ctx, origin, content)
}

// receiveReceipts leaves out the rooms whose ACL does not let the server in.
func (h *handler) receiveReceipts(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var rooms map[matrix.RoomID]json.RawMessage
	if err := json.Unmarshal(content, &rooms); err != nil {
		return matrix.BadJSON("receipts: they have the wrong shape")
	}
	all := len(rooms)
	for room := range rooms {
		if !h.Rooms.ServerAllowed(ctx, room, origin) {
			delete(rooms, room)
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	if len(rooms) < all {
		var err error
		if content, err = encode(rooms); err != nil {
			return err
		}
	}
	return h.Sync.ReceiveReceipts(ctx, origin, content)
}
