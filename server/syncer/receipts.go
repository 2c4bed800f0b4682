package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const fullyRead = "m.fully_read"

// mainThread is the thread ID of what is in no thread.
const mainThread = "main"

// SetReceipt is POST /rooms/{room}/receipt/{type}/{event}. typ is m.read, m.read.private or m.fully_read; thread is nil
// for an unthreaded receipt. A receipt never goes back in the room's history: an older one changes nothing.
// Errors: M_INVALID_PARAM (type, thread), M_FORBIDDEN (not joined), M_NOT_FOUND (event).
// Spec v1.19 client-server-api/#post_matrixclientv3roomsroomidreceiptreceipttypeeventid
func (s *Service) SetReceipt(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, event matrix.EventID, thread *string) error {
	switch typ {
	case storage.ReceiptRead, storage.ReceiptReadPrivate:
	case fullyRead:
		if thread != nil {
			return matrix.InvalidParam("m.fully_read has no thread_id")
		}
	default:
		return matrix.InvalidParam("receipts are of type m.read, m.read.private or m.fully_read")
	}
	if err := s.mustBeJoined(ctx, user, room); err != nil {
		return err
	}
	if typ == fullyRead {
		return s.setFullyRead(ctx, user, room, event)
	}
	r, err := s.receipt(ctx, user, room, typ, event, thread)
	if err != nil {
		return err
	}
	return s.storeReceipts(ctx, []storage.Receipt{r})
}

// ReadMarkers is the body of POST /rooms/{room}/read_markers. Empty ones are left as they are.
type ReadMarkers struct {
	FullyRead   matrix.EventID `json:"m.fully_read"`
	Read        matrix.EventID `json:"m.read"`
	ReadPrivate matrix.EventID `json:"m.read.private"`
}

// SetReadMarkers moves the markers given. Errors as SetReceipt.
// Spec v1.19 client-server-api/#post_matrixclientv3roomsroomidread_markers
func (s *Service) SetReadMarkers(ctx context.Context, user matrix.UserID, room matrix.RoomID, m ReadMarkers) error {
	if err := s.mustBeJoined(ctx, user, room); err != nil {
		return err
	}
	var list []storage.Receipt
	for _, marker := range []struct {
		typ   string
		event matrix.EventID
	}{{storage.ReceiptRead, m.Read}, {storage.ReceiptReadPrivate, m.ReadPrivate}} {
		if marker.event == "" {
			continue
		}
		r, err := s.receipt(ctx, user, room, marker.typ, marker.event, nil)
		if err != nil {
			return err
		}
		list = append(list, r)
	}
	if m.FullyRead != "" {
		if err := s.setFullyRead(ctx, user, room, m.FullyRead); err != nil {
			return err
		}
	}
	return s.storeReceipts(ctx, list)
}

// receipt makes a receipt of a user of ours, after checking what it says.
func (s *Service) receipt(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, event matrix.EventID, thread *string) (storage.Receipt, error) {
	r := storage.Receipt{Room: room, User: user, Type: typ, Event: event, TS: s.now().UnixMilli()}
	e, err := s.eventIn(ctx, room, event)
	if err != nil {
		return r, err
	}
	r.EventPos = e.Pos
	if thread == nil {
		return r, nil
	}
	r.Thread = *thread
	if r.Thread == "" {
		return r, matrix.InvalidParam("thread_id must not be empty")
	}
	if r.Thread != mainThread {
		if _, err := matrix.ParseEventID(r.Thread); err != nil {
			return r, matrix.InvalidParam("thread_id must be main or an event ID")
		}
	}
	// An event belongs to its thread; a thread's root, in the main timeline itself, may end a receipt for its thread.
	in, err := s.threadOf(ctx, e.Event, threadHops)
	if err != nil {
		return r, err
	}
	if r.Thread != string(in) && !(r.Thread == mainThread && in == "") && r.Thread != string(event) {
		return r, matrix.InvalidParam("the event is not in the thread %s", r.Thread)
	}
	return r, nil
}

// eventIn finds an event of a room. Error: M_NOT_FOUND.
func (s *Service) eventIn(ctx context.Context, room matrix.RoomID, event matrix.EventID) (*storage.Event, error) {
	e, err := s.o.DB.EventByID(ctx, event)
	if isNotFound(err) || err == nil && (e.RoomID() != room || e.Hidden()) {
		return nil, matrix.NotFound("there is no such event in this room")
	}
	return e, err
}

// setFullyRead moves the fully read marker, unless it is ahead already.
func (s *Service) setFullyRead(ctx context.Context, user matrix.UserID, room matrix.RoomID, event matrix.EventID) error {
	e, err := s.eventIn(ctx, room, event)
	if err != nil {
		return err
	}
	old, err := s.o.DB.AccountData(ctx, user, room, fullyRead)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if err == nil {
		var marker struct {
			Event matrix.EventID `json:"event_id"`
		}
		if json.Unmarshal(old, &marker) == nil {
			if at, err := s.o.DB.EventByID(ctx, marker.Event); err == nil && e.Pos <= at.Pos && e.Pos > 0 {
				return nil
			}
		}
	}
	content, err := json.Marshal(map[string]matrix.EventID{"event_id": event})
	if err != nil {
		return err
	}
	return s.o.DB.SetAccountData(ctx, user, room, fullyRead, content)
}

// storeReceipts stores receipts of a user of ours and tells other servers of the public ones.
func (s *Service) storeReceipts(ctx context.Context, list []storage.Receipt) error {
	if len(list) == 0 {
		return nil
	}
	var moved []storage.Receipt
	err := s.o.DB.SetReceipts(ctx, list, func(rs []storage.Receipt) {
		moved = rs
		s.receiptsStored(rs)
	})
	if err != nil {
		return err
	}
	for _, r := range moved {
		if r.Type != storage.ReceiptRead {
			continue
		}
		data := receiptData{TS: r.TS, ThreadID: r.Thread}
		content, err := json.Marshal(receiptEDU{r.Room: {r.Type: {r.User: {EventIDs: []matrix.EventID{r.Event}, Data: data}}}})
		if err != nil {
			return err
		}
		s.o.OnEDU(EDU{Type: "m.receipt", Room: r.Room, User: r.User, Content: content})
	}
	return nil
}

// receiptEDU is the content of an m.receipt EDU: by room, type and user.
type receiptEDU map[matrix.RoomID]map[string]map[matrix.UserID]userReceipt

type userReceipt struct {
	EventIDs []matrix.EventID `json:"event_ids"`
	Data     receiptData      `json:"data"`
}

type receiptData struct {
	TS       int64  `json:"ts"` // ms
	ThreadID string `json:"thread_id,omitempty"`
}

// maxReceiptsPerEDU bounds how many receipts of one EDU are stored.
const maxReceiptsPerEDU = 1000

// ReceiveReceipts takes an m.receipt EDU. What is not origin's to say is passed over.
// Spec v1.19 server-server-api/#receipts
func (s *Service) ReceiveReceipts(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var edu receiptEDU
	if err := json.Unmarshal(content, &edu); err != nil {
		return matrix.BadJSON("m.receipt: %v", err)
	}
	var list []storage.Receipt
	for room, types := range edu {
		for user, u := range types[storage.ReceiptRead] {
			if _, err := matrix.ParseUserID(string(user)); err != nil || user.Server() != origin || len(u.EventIDs) == 0 {
				continue
			}
			if _, err := matrix.ParseEventID(string(u.EventIDs[0])); err != nil || len(u.Data.ThreadID) > 255 || len(list) >= maxReceiptsPerEDU {
				continue
			}
			joined, err := s.isJoined(ctx, user, room)
			if err != nil {
				return err
			}
			if !joined {
				continue
			}
			r := storage.Receipt{Room: room, User: user, Type: storage.ReceiptRead, Thread: u.Data.ThreadID, Event: u.EventIDs[0], TS: u.Data.TS}
			e, err := s.eventIn(ctx, room, r.Event)
			switch {
			case err == nil:
				r.EventPos = e.Pos
			case !isNotFound(err):
				return err
			}
			list = append(list, r)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return s.o.DB.SetReceipts(ctx, list, s.receiptsStored)
}

// mustBeJoined returns M_FORBIDDEN unless the user is joined to the room.
func (s *Service) mustBeJoined(ctx context.Context, user matrix.UserID, room matrix.RoomID) error {
	joined, err := s.isJoined(ctx, user, room)
	if err == nil && !joined {
		return matrix.Forbidden("you are not joined to this room")
	}
	return err
}

// isJoined looks in memory first.
func (s *Service) isJoined(ctx context.Context, user matrix.UserID, room matrix.RoomID) (bool, error) {
	if user.Server() == s.o.ServerName {
		r, err := s.o.Rooms.Room(ctx, room)
		if isNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		_, joined := r.Snapshot().Local[user]
		return joined, nil
	}
	return s.o.Rooms.MayBeJoined(ctx, room, user)
}

// sharesRoom reports whether both are joined to one room, or may be. viewer is of this server.
func (s *Service) sharesRoom(ctx context.Context, viewer, user matrix.UserID) (bool, error) {
	return s.o.Rooms.MayShareRoom(ctx, viewer, user)
}

// receiptsFor are the receipts of an item that the reader is shown.
func (it *item) receiptsFor(a *answer) []storage.Receipt {
	list := it.receipts
	if it.askReceipts {
		list = a.receipts[it.id]
	}
	first := 0
	if !it.askReceipts {
		for first < len(list) && list[first].Pos <= a.from.Pos {
			first++
		}
	}
	return list[first:]
}

// receiptsOfMine reports whether a receipt of the reader is among the new ones, which changes the unread counts.
func (it *item) receiptsOfMine(a *answer) bool {
	for _, r := range it.receiptsFor(a) {
		if r.User == a.r.User && r.Pos <= a.to.Pos {
			return true
		}
	}
	return false
}

// appendEphemeral writes ,"ephemeral":{"events":[…]} unless there is nothing to write. In a room that the client does not know yet it is
// there in any case: many a client reads it without looking whether it is.
func (a *answer) appendEphemeral(b []byte, it *item) []byte {
	f := &a.f.Room.Ephemeral
	if !f.wantsRoom(it.id) {
		return b
	}
	start := len(b)
	b = comma(b)
	b = append(b, `"ephemeral":{"events":[`...)
	none := len(b)
	if it.typingNew && f.wantsType("m.typing") {
		list := it.typing
		if len(a.ignored) > 0 {
			list = nil
			for _, u := range it.typing {
				if !a.ignored[u] {
					list = append(list, u)
				}
			}
		}
		b = appendTyping(b, list)
	}
	if f.wantsType("m.receipt") {
		b = a.appendReceipts(b, it.receiptsFor(a), len(b) > none)
	}
	b = a.appendVoice(b, it, f)
	if len(b) == none && !it.whole {
		return b[:start]
	}
	return append(b, `]}`...)
}

// appendReceipts writes m.receipt events. One event has room for one receipt of each user, type and event, so an unthreaded
// receipt and one for a thread that point to the same event go into two.
func (a *answer) appendReceipts(b []byte, all []storage.Receipt, after bool) []byte {
	if len(all) == 0 {
		return b
	}
	list := make([]storage.Receipt, 0, len(all))
	for _, r := range all {
		if r.Pos <= a.to.Pos && !a.ignored[r.User] && (r.Type != storage.ReceiptReadPrivate || r.User == a.r.User) {
			list = append(list, r)
		}
	}
	for len(list) > 0 {
		batch, rest := splitReceipts(list)
		if after {
			b = append(b, ',')
		}
		b = appendReceiptEvent(b, batch)
		list, after = rest, true
	}
	return b
}

type receiptKey struct {
	event matrix.EventID
	typ   string
	user  matrix.UserID
}

// splitReceipts takes the first receipt of each event, type and user.
func splitReceipts(list []storage.Receipt) (batch map[matrix.EventID]map[string][]storage.Receipt, rest []storage.Receipt) {
	batch = map[matrix.EventID]map[string][]storage.Receipt{}
	seen := make(map[receiptKey]bool, len(list))
	for _, r := range list {
		key := receiptKey{r.Event, r.Type, r.User}
		if seen[key] {
			rest = append(rest, r)
			continue
		}
		seen[key] = true
		types := batch[r.Event]
		if types == nil {
			types = map[string][]storage.Receipt{}
			batch[r.Event] = types
		}
		types[r.Type] = append(types[r.Type], r)
	}
	return batch, rest
}

func appendReceiptEvent(b []byte, batch map[matrix.EventID]map[string][]storage.Receipt) []byte {
	b = append(b, `{"type":"m.receipt","content":{`...)
	for event, types := range batch {
		b = comma(b)
		b = appendString(b, string(event))
		b = append(b, `:{`...)
		for typ, list := range types {
			b = comma(b)
			b = append(b, '"')
			b = append(b, typ...)
			b = append(b, `":{`...)
			for _, r := range list {
				b = comma(b)
				b = appendString(b, string(r.User))
				b = append(b, `:{"ts":`...)
				b = strconv.AppendInt(b, r.TS, 10)
				if r.Thread != "" {
					b = append(b, `,"thread_id":`...)
					b = appendString(b, r.Thread)
				}
				b = append(b, '}')
			}
			b = append(b, '}')
		}
		b = append(b, '}')
	}
	return append(b, `}}`...)
}
