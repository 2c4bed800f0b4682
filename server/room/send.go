package room

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// SendRequest is an event that a user of this server sends.
type SendRequest struct {
	Room     matrix.RoomID
	Sender   matrix.UserID
	Type     string
	StateKey *string // nil: not a state event
	Content  json.RawMessage
	Redacts  matrix.EventID // of an m.room.redaction
	// Device and TxnID make the request one that may be repeated: the second time gives the same event ID. Both or none.
	Device matrix.DeviceID
	TxnID  string
	// Time is for application services that may say when an event was sent; zero means now.
	Time time.Time
}

// Send builds, authorizes, signs and stores an event, and returns once it is durable. A state event that says what the
// current one says already adds nothing, and the ID of the current one is returned.
// Errors: M_FORBIDDEN with the reason, M_NOT_FOUND (room), M_TOO_LARGE, M_BAD_JSON, M_BAD_ALIAS and M_INVALID_PARAM
// (canonical alias, types that are not to be sent like this), M_DUPLICATE_ANNOTATION.
func (s *Service) Send(ctx context.Context, r SendRequest) (matrix.EventID, error) {
	if err := s.checkSend(ctx, &r); err != nil {
		return "", err
	}
	if r.invitesElsewhere(s.o.ServerName) {
		if _, err := s.joinedRoom(ctx, r.Room, r.Sender); err != nil {
			return "", err
		}
		e, err := s.inviteThrough(ctx, r.Room, matrix.Builder{Sender: r.Sender, Type: r.Type, StateKey: r.StateKey, Content: r.Content})
		if err != nil {
			return "", err
		}
		return e.ID(), nil
	}
	room, err := s.pin(ctx, r.Room)
	if errors.Is(err, errNoRoom) {
		return "", matrix.Forbidden("you are not in this room")
	}
	if err != nil {
		return "", err
	}
	defer room.pins.Add(-1)
	// That the transaction ID was used long ago shows when the event is written: see [Service.runJobs].
	var id matrix.EventID
	err = s.run(ctx, room, func(u *update) error {
		var err error
		id, err = u.send(&r)
		return err
	})
	return id, err
}

// invitesElsewhere reports whether the event invites a user of another server, which has to sign it.
func (r *SendRequest) invitesElsewhere(here matrix.ServerName) bool {
	if r.Type != matrix.TypeMember || r.StateKey == nil || matrix.UserID(*r.StateKey).Server() == here {
		return false
	}
	if _, err := matrix.ParseUserID(*r.StateKey); err != nil {
		return false
	}
	content, err := object(r.Content)
	return err == nil && string(content["membership"]) == `"invite"`
}

// joinsSelf reports whether the event is a join of its sender.
func (r *SendRequest) joinsSelf() bool {
	if r.Type != matrix.TypeMember || r.StateKey == nil || *r.StateKey != string(r.Sender) {
		return false
	}
	content, err := object(r.Content)
	return err == nil && string(content["membership"]) == `"join"`
}

// sentBefore finds what was sent with the request's transaction ID; "" if nothing was.
func (s *Service) sentBefore(ctx context.Context, room *Room, r *SendRequest) (matrix.EventID, error) {
	if r.TxnID == "" {
		return "", nil
	}
	id, err := s.o.DB.EventByTxn(ctx, room.Num, r.Sender, r.Device, r.Type, r.TxnID)
	if errors.Is(err, storage.ErrNotFound) {
		err = nil
	}
	return id, err
}

// SentBefore finds what was sent with the request's transaction ID; "" if nothing was, or the request has none.
func (s *Service) SentBefore(ctx context.Context, r SendRequest) (matrix.EventID, error) {
	room, err := s.Room(ctx, r.Room)
	if errors.Is(err, errNoRoom) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return s.sentBefore(ctx, room, &r)
}

func (u *update) send(r *SendRequest) (matrix.EventID, error) {
	txn := sentTxn{user: r.Sender, device: r.Device, typ: r.Type, id: r.TxnID}
	if r.TxnID != "" {
		if id, ok := findTxn(u.room.sent.list, &txn); ok {
			return id, nil
		}
		if id, ok := findTxn(u.sent, &txn); ok {
			return id, nil
		}
		if u.moved > 0 { // because it was used, perhaps
			if id, err := u.s.sentBefore(u.ctx, u.room, r); err != nil || id != "" {
				return id, err
			}
		}
	}
	if r.StateKey != nil {
		current, err := u.state(r.Type, *r.StateKey)
		if err != nil {
			return "", err
		}
		if current != nil && current.RedactedBy == "" && current.Sender() == r.Sender && sameJSON(current.Content(), r.Content) {
			return current.ID(), nil
		}
	}
	if err := u.checkThread(r); err != nil {
		return "", err
	}
	if err := u.checkAnnotation(r); err != nil {
		return "", err
	}
	content := r.Content
	if r.joinsSelf() {
		var err error
		if content, err = u.ownJoin(r.Sender, content); err != nil {
			return "", err
		}
	}
	e, err := u.build(&matrix.Builder{Sender: r.Sender, Type: r.Type, StateKey: r.StateKey, Content: content, Redacts: r.Redacts, Time: r.Time})
	if err != nil {
		return "", err
	}
	if err := u.allow(e); err != nil {
		return "", err
	}
	stored, err := u.appendOwn(entry{event: e, before: u.snap.Root, device: r.Device, txnID: r.TxnID, built: true})
	if err != nil {
		return "", err
	}
	if r.TxnID != "" {
		txn.event = stored.ID()
		u.sent = append(u.sent, txn)
	}
	return stored.ID(), nil
}

// ownJoin is the content of a user's own join as it is to be sent: by whose power they join is ours to say.
func (u *update) ownJoin(user matrix.UserID, raw json.RawMessage) (json.RawMessage, error) {
	if u.snap.Local[user] == 0 {
		via, err := u.authoriser(user)
		if err != nil && !errors.Is(err, errCannotGrant) {
			return nil, err
		}
		if via != "" {
			return withFields(raw, map[string]any{authorisedVia: string(via)})
		}
	}
	return withFields(raw, map[string]any{authorisedVia: nil})
}

// sameJSON compares canonical JSON with any other.
func sameJSON(canonical, raw []byte) bool {
	other, err := matrix.CanonicalJSON(nil, raw)
	return err == nil && bytes.Equal(canonical, other)
}

// state looks up one event of the current state; nil if there is none.
func (u *update) state(typ, key string) (*storage.Event, error) {
	return u.s.stateEvent(u.ctx, u.room.Num, u.snap.Root, typ, key, u.fresh)
}

// build makes an event that follows on the tip: it sets the room, prev_events, auth_events, depth and, if it is zero, the time.
func (u *update) build(b *matrix.Builder) (*matrix.Event, error) {
	b.RoomID = u.room.ID
	if b.Type == matrix.TypeCreate && u.room.Version.RoomIDIsCreateID {
		b.RoomID = ""
	}
	if b.Time.IsZero() {
		b.Time = u.s.o.Now()
	}
	if err := u.follow(b); err != nil {
		return nil, err
	}
	keys := b.AuthKeys(u.room.Version)
	state := make([]*matrix.Event, 0, len(keys)+1)
	b.AuthEvents = make([]matrix.EventID, 0, len(keys))
	for _, key := range keys {
		e, err := u.state(key.Type, key.StateKey)
		if err != nil {
			return nil, err
		}
		if e != nil {
			b.AuthEvents = append(b.AuthEvents, e.ID())
			state = append(state, e.Event)
		}
	}
	if e := u.builtBefore(b); e != nil {
		return e, nil
	}
	if u.snap.Create != nil {
		state = append(state, u.snap.Create.Event)
	}
	if u.room.Version.EventIDInEvent {
		b.ReferenceHash = u.referenceHash
	}
	e, err := b.Build(u.room.Version, u.s.o.ServerName, u.s.o.Key)
	if b.Type != matrix.TypeMember { // of others the content does not say by what they are authorized
		u.built = builtEvent{e, u.snap.Root, state}
	}
	return e, err
}

// follow sets the prev_events and the depth. A tip that is too wide for one event is first made narrower: see [Service.narrow].
func (u *update) follow(b *matrix.Builder) error {
	tip := u.snap.Tip
	if len(tip) > matrix.MaxPrevEvents {
		tip = slices.Clone(tip)
		slices.SortFunc(tip, func(a, b *storage.Event) int { return int(b.Depth() - a.Depth()) })
		tip = tip[:matrix.MaxPrevEvents]
	}
	b.PrevEvents = make([]matrix.EventID, len(tip))
	for i, t := range tip {
		b.PrevEvents[i] = t.ID()
	}
	b.Depth = u.snap.Depth + 1
	return nil
}

func (u *update) referenceHash(id matrix.EventID) [32]byte {
	e, err := u.known(id)
	if err != nil || e == nil {
		return [32]byte{} // cannot be: these are events of the tip and of the current state
	}
	return e.ReferenceHash()
}

// allow checks an event of ours against the current state.
func (u *update) allow(e *matrix.Event) error {
	var err error
	if u.built.event == e && u.built.root == u.snap.Root {
		err = matrix.Authorize(e, among(u.built.state))
	} else {
		err = u.s.authorize(u.ctx, u.room.Num, e, u.snap.Root, u.fresh)
	}
	if auth := (*matrix.AuthError)(nil); errors.As(err, &auth) {
		if e.Type() == matrix.TypePowerLevels && u.room.Version.PrivilegedCreators && auth.Rule == "10.4" { // wrong whoever sends it
			return matrix.InvalidParam("%s", auth.Reason)
		}
		return matrix.Forbidden("%s", auth.Reason)
	}
	return err
}

// RedactRequest asks for a redaction.
type RedactRequest struct {
	Room   matrix.RoomID
	Sender matrix.UserID
	Event  matrix.EventID
	Reason string
	Device matrix.DeviceID
	TxnID  string
	// Content holds further fields of the redaction's content; may be nil.
	Content json.RawMessage
}

// Redact redacts an event: PUT /rooms/{room}/redact/{event}/{txn}. One may redact one's own events, and others' with the room's redact level.
// Errors as Send, and M_NOT_FOUND (event of another room).
func (s *Service) Redact(ctx context.Context, r RedactRequest) (matrix.EventID, error) {
	content, err := withFields(r.Content, map[string]any{"reason": r.Reason})
	if err != nil {
		return "", err
	}
	room, err := s.Room(ctx, r.Room)
	if errors.Is(err, errNoRoom) {
		return "", matrix.Forbidden("you are not in this room")
	}
	if err != nil {
		return "", err
	}
	send := SendRequest{Room: r.Room, Sender: r.Sender, Type: matrix.TypeRedaction, Content: content, Redacts: r.Event, Device: r.Device, TxnID: r.TxnID}
	if id, err := s.sentBefore(ctx, room, &send); err != nil || id != "" {
		return id, err
	}
	target, err := s.o.DB.EventByID(ctx, r.Event)
	if errors.Is(err, storage.ErrNotFound) { // others may have it; whether they heed the redaction is up to them
		return s.Send(ctx, send)
	}
	if err != nil {
		return "", err
	}
	if target.RoomNum != room.Num {
		return "", matrix.NotFound("there is no such event in this room")
	}
	snap := room.Snapshot()
	if target.Sender() != r.Sender && snap.Power != nil && !snap.Power.CanRedact(r.Sender) {
		return "", matrix.Forbidden("you may not redact the events of others in this room")
	}
	return s.Send(ctx, send)
}

// authorisedVia is the field of a join that names who let the user in. Servers write it, never clients.
const authorisedVia = "join_authorised_via_users_server"

// withFields returns a JSON object with further fields, those that are not the empty string; raw may be nil. A field that is nil is
// taken out.
func withFields(raw json.RawMessage, fields map[string]any) (json.RawMessage, error) {
	all := map[string]json.RawMessage{}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &all); err != nil || all == nil {
			return nil, matrix.BadJSON("the content must be a JSON object")
		}
	}
	for key, value := range fields {
		if value == "" {
			continue
		}
		if value == nil {
			delete(all, key)
			continue
		}
		b, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		all[key] = b
	}
	return json.Marshal(all)
}
