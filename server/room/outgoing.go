package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	// handshakeTimeout bounds a join, knock, leave or invite through other servers.
	handshakeTimeout = 3 * time.Minute
	// handshakeServers is how many servers are asked to help.
	handshakeServers = 10
	// maxStripped is how many stripped state events of an invite or a knock are kept, of at most maxStrippedBytes in all.
	maxStripped      = 50
	maxStrippedBytes = 256 << 10
)

// errJoinedMeanwhile says that this server is in the room now, so that the user can join without help.
var errJoinedMeanwhile = errors.New("this server has joined the room meanwhile")

// keyedLocks lets one goroutine at a time work for a key. The zero value is ready for use.
type keyedLocks struct {
	mu    sync.Mutex
	locks map[matrix.RoomID]*keyedLock
}

type keyedLock struct {
	held    chan struct{}
	waiters int
}

// lock waits for the key; the error is ctx's.
func (k *keyedLocks) lock(ctx context.Context, key matrix.RoomID) (unlock func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[matrix.RoomID]*keyedLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.waiters++
	k.mu.Unlock()
	done := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.waiters--; l.waiters == 0 {
			delete(k.locks, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; done() }, nil
	case <-ctx.Done():
		done()
		return nil, ctx.Err()
	}
}

// versions are the room versions we tell other servers that we support.
func versions() []string {
	var all []string
	for _, v := range matrix.RoomVersions() {
		all = append(all, v.ID)
	}
	return all
}

// helpers lists the servers that may help user with a room: those of the request and that of who has invited the user. Only if
// the request names none, or we are in the room and know better, are there those that were last in the room and that of the room ID:
// who names servers wants no other to be asked.
func (s *Service) helpers(ctx context.Context, room matrix.RoomID, user matrix.UserID, via []matrix.ServerName) []matrix.ServerName {
	if s.o.Remote == nil {
		return nil
	}
	list := s.others(validServers(via), handshakeServers)
	named := len(list) > 0
	if m, err := s.Membership(ctx, room, user); err == nil && m.Num != 0 {
		if e, err := s.o.DB.Event(ctx, m.Num); err == nil {
			list = append(list, e.Sender().Server())
		}
	}
	if r, err := s.Room(ctx, room); err == nil && (!named || r.Snapshot().Joined()) {
		list = append(list, s.serversToJoinThrough(r.Snapshot())...)
	}
	if server := room.Server(); server != "" && !named {
		list = append(list, server)
	}
	return s.others(validServers(list), handshakeServers)
}

// handshake remembers why the servers that were asked did not help.
type handshake struct {
	s    *Service
	what string
	room matrix.RoomID
	err  error
	// forbidden counts the servers to which this one must not talk.
	forbidden int
}

// failed notes what one server answered. What says most is told in the end: a refusal before “not found” before no answer at all.
func (h *handshake) failed(server matrix.ServerName, err error) {
	h.s.o.Log.Info("a server did not help", "what", h.what, "room", h.room, "server", server, "err", err)
	if errors.Is(err, ErrNotPermitted) {
		h.forbidden++
	}
	var e *matrix.Error
	if !errors.As(err, &e) || e.Status >= 500 {
		return
	}
	switch e.Code {
	case "M_INVALID_PARAM", "M_MISSING_PARAM", "M_BAD_JSON", "M_UNRECOGNIZED": // our or its fault, not the user's
		return
	}
	if h.err == nil || matrix.ErrorCode(h.err) == "M_NOT_FOUND" {
		h.err = e
	}
}

// outcome is what the user is told when no server has helped.
func (h *handshake) outcome(asked int) error {
	switch {
	case h.err != nil:
		return h.err
	case asked == 0:
		return matrix.NotFound("no server is known that is in the room")
	case asked == h.forbidden:
		return matrix.Forbidden("this server is not allowed to talk to the servers through which the room could be reached")
	}
	return matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "none of the servers that may be in the room could help")
}

// fromTemplate makes the event of a template that server has answered. content is ours, but for what only the resident server knows.
// Spec v1.19 server-server-api/#joining-rooms
func (s *Service) fromTemplate(answer MakeResponse, room matrix.RoomID, user matrix.UserID, membership string, content json.RawMessage) (*matrix.Event, error) {
	if answer.RoomVersion == "" {
		answer.RoomVersion = "1"
	}
	version := matrix.LookupRoomVersion(answer.RoomVersion)
	if version == nil {
		return nil, matrix.UnsupportedRoomVersion("this server does not support the version %q of the room", answer.RoomVersion)
	}
	b, err := matrix.ParseTemplate(answer.Event, version)
	if err != nil {
		return nil, err
	}
	var told struct {
		Membership string          `json:"membership"`
		Via        json.RawMessage `json:"join_authorised_via_users_server"`
	}
	if err := json.Unmarshal(b.Content, &told); err != nil {
		return nil, fmt.Errorf("content of the template: %w", err)
	}
	if b.RoomID != room || b.Type != matrix.TypeMember || b.Sender != user || b.StateKey == nil || *b.StateKey != string(user) || told.Membership != membership {
		return nil, errors.New("the template is not of the event that was asked for")
	}
	all := map[string]json.RawMessage{}
	if len(content) > 0 {
		if err := json.Unmarshal(content, &all); err != nil {
			return nil, matrix.BadJSON("the content must be a JSON object")
		}
	}
	all["membership"], _ = json.Marshal(membership) // a string always encodes
	delete(all, "join_authorised_via_users_server")
	if membership == matrix.Join && len(told.Via) > 0 {
		all["join_authorised_via_users_server"] = told.Via
	}
	if b.Content, err = json.Marshal(all); err != nil {
		return nil, err
	}
	b.Time = s.o.Now()
	return b.Build(version, s.o.ServerName, s.o.Key)
}

// joinThrough joins a user of ours to a room with the help of a server that is in it. content is that of the member event. The error is
// errJoinedMeanwhile if this server is in the room, unless it is so already and asks for help because it may not let
// the user in itself (inRoom). Spec v1.19 server-server-api/#joining-rooms
func (s *Service) joinThrough(ctx context.Context, r JoinRequest, content json.RawMessage, inRoom bool) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	unlock, err := s.foreign.joins.lock(ctx, r.Room)
	if err != nil {
		return err
	}
	defer unlock()
	if known, err := s.Room(ctx, r.Room); err == nil && known.Snapshot().Joined() && !inRoom {
		return errJoinedMeanwhile
	}
	h := &handshake{s: s, what: "join", room: r.Room}
	servers := s.helpers(ctx, r.Room, r.User, r.Via)
	for _, server := range servers {
		if err := ctx.Err(); err != nil {
			return err
		}
		answer, err := s.o.Remote.MakeJoin(ctx, server, r.Room, r.User, versions())
		if err != nil {
			h.failed(server, err)
			continue
		}
		join, err := s.fromTemplate(answer, r.Room, r.User, matrix.Join, content)
		if err != nil {
			h.failed(server, err)
			continue
		}
		in := newIntake(join.Version(), r.Room)
		accepted, err := s.o.Remote.SendJoin(ctx, server, r.Room, join.ID(), join.JSON(), s.o.Config.PartialJoins, in.take)
		state, chain := in.end()
		if err != nil {
			h.failed(server, err)
			continue
		}
		if accepted.Event != nil {
			if signed, err := matrix.ParseEvent(accepted.Event, join.Version()); err == nil && signed.ID() == join.ID() && !signed.Redacted() {
				join = signed
			}
		}
		if err := s.joined(ctx, server, join, accepted, state, chain); err != nil {
			h.failed(server, err)
			continue
		}
		return nil
	}
	return h.outcome(len(servers))
}

// knockThrough knocks on a room that this server is not in. Spec v1.19 server-server-api/#knocking-upon-a-room
func (s *Service) knockThrough(ctx context.Context, r JoinRequest, content json.RawMessage) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	h := &handshake{s: s, what: "knock", room: r.Room}
	servers := s.helpers(ctx, r.Room, r.User, r.Via)
	for _, server := range servers {
		answer, err := s.o.Remote.MakeKnock(ctx, server, r.Room, r.User, versions())
		if err != nil {
			h.failed(server, err)
			continue
		}
		knock, err := s.fromTemplate(answer, r.Room, r.User, matrix.Knock, content)
		if err != nil {
			h.failed(server, err)
			continue
		}
		state, err := s.o.Remote.SendKnock(ctx, server, r.Room, knock.ID(), knock.JSON())
		if err != nil {
			h.failed(server, err)
			continue
		}
		return s.setOutsideMembership(ctx, r.Room, knock.Version(), knock, cleanStripped(state), refuseIfJoined)
	}
	return h.outcome(len(servers))
}

func refuseIfJoined(u *update) error {
	if u.snap.Joined() {
		return errJoinedMeanwhile
	}
	return nil
}

// leaveThrough rejects an invite into a room that this server is not in, or takes back a knock. If no server helps, the user is out as far as we
// are concerned: an invite must not be impossible to get rid of. Spec v1.19 server-server-api/#leaving-rooms-rejecting-invites
func (s *Service) leaveThrough(ctx context.Context, room matrix.RoomID, user matrix.UserID, content json.RawMessage) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	r, err := s.Room(ctx, room)
	if err != nil {
		return err
	}
	h := &handshake{s: s, what: "leave", room: room}
	for _, server := range s.helpers(ctx, room, user, nil) {
		answer, err := s.o.Remote.MakeLeave(ctx, server, room, user)
		if err != nil {
			h.failed(server, err)
			continue
		}
		answer.RoomVersion = r.Version.ID // which old servers leave out
		leave, err := s.fromTemplate(answer, room, user, matrix.Leave, content)
		if err == nil {
			err = s.o.Remote.SendLeave(ctx, server, room, leave.ID(), leave.JSON())
		}
		if err != nil {
			h.failed(server, err)
			continue
		}
		return s.setOutsideMembership(ctx, room, r.Version, leave, nil, refuseIfJoined)
	}
	return s.leaveAlone(ctx, r, user, content)
}

// leaveAlone notes that a user of ours has left a room, with an event that no other server gets to see.
func (s *Service) leaveAlone(ctx context.Context, r *Room, user matrix.UserID, content json.RawMessage) error {
	m, err := s.o.DB.Membership(ctx, r.Num, user)
	if err != nil {
		return err
	}
	last, err := s.o.DB.Event(ctx, m.Num)
	if err != nil {
		return err
	}
	content, err = withFields(content, map[string]any{"membership": matrix.Leave})
	if err != nil {
		return err
	}
	key := string(user)
	b := &matrix.Builder{RoomID: r.ID, Sender: user, Type: matrix.TypeMember, StateKey: &key, Content: content, Time: s.o.Now(),
		PrevEvents: []matrix.EventID{last.ID()}, AuthEvents: []matrix.EventID{last.ID()}, Depth: last.Depth() + 1}
	b.ReferenceHash = func(matrix.EventID) [32]byte { return last.ReferenceHash() }
	leave, err := b.Build(r.Version, s.o.ServerName, s.o.Key)
	if err != nil {
		return err
	}
	return s.setOutsideMembership(ctx, r.ID, r.Version, leave, nil, refuseIfJoined)
}

// inviteThrough makes an invite of a user of another server, has that server sign it, and appends it. b names the sender, the target in the
// state key, and the content; the rest is filled in. Errors: M_FORBIDDEN, also from the other server, M_NOT_FOUND (room),
// M_UNKNOWN with status 502 if the other server does not answer. Spec v1.19 server-server-api/#inviting-to-a-room
func (s *Service) inviteThrough(ctx context.Context, room matrix.RoomID, b matrix.Builder) (*storage.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if s.o.Remote == nil {
		return nil, matrix.Forbidden("this server does not talk to others")
	}
	target := matrix.UserID(*b.StateKey)
	var invite *matrix.Event
	var state []json.RawMessage
	err := s.update(ctx, room, func(u *update) (err error) {
		fill := b
		if !u.snap.ACL.Allows(target.Server()) {
			return matrix.Forbidden("this room does not let the server %s take part", target.Server())
		}
		if invite, err = u.build(&fill); err != nil {
			return err
		}
		if err = u.allow(invite); err != nil {
			return err
		}
		signed, refused, err := u.recommended(invite)
		if err != nil || refused != nil {
			return errors.Join(err, refused)
		}
		invite = signed
		state, err = u.inviteState(b.Sender)
		return err
	})
	if err != nil {
		return nil, err
	}
	raw, err := s.o.Remote.Invite(ctx, target.Server(), room, invite.ID(), InviteRequest{RoomVersion: invite.Version().ID, Event: invite.JSON(), InviteRoomState: state})
	if err != nil {
		switch code := matrix.ErrorCode(err); code {
		case "M_INVALID_PARAM", "M_MISSING_PARAM":
			err = matrix.NewError(http.StatusBadGateway, code, "the server %s did not understand the invite", target.Server())
		}
		return nil, s.remoteFailed("invite", target.Server(), err)
	}
	signed, err := matrix.ParseEvent(raw, invite.Version())
	if err != nil || signed.ID() != invite.ID() || signed.Redacted() || !signed.SignedBy(s.o.ServerName) {
		return nil, matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the server %s answered with another event than the invite", target.Server())
	}
	var added *storage.Event
	err = s.update(ctx, room, func(u *update) error {
		var verdict error
		if added, verdict, err = u.accept(signed, arrival{}); err != nil {
			return err
		}
		if verdict != nil {
			return matrix.Forbidden("the room has changed meanwhile and does not allow the invite any more")
		}
		return nil
	})
	return added, err
}

// strippedTypes are the state events by which those outside know a room. Spec v1.19 client-server-api/#stripped-state
var strippedTypes = []string{
	matrix.TypeCreate, matrix.TypeName, matrix.TypeAvatar, matrix.TypeTopic, matrix.TypeJoinRules, matrix.TypeCanonicalAlias, matrix.TypeEncryption,
}

// inviteState are the events that tell about the room to who is invited by sender or knocks, whole as the server-server API has them.
func (u *update) inviteState(sender matrix.UserID) ([]json.RawMessage, error) {
	state := []json.RawMessage{}
	add := func(typ, key string) error {
		e, err := u.state(typ, key)
		if e != nil {
			state = append(state, e.JSON())
		}
		return err
	}
	for _, typ := range strippedTypes {
		if err := add(typ, ""); err != nil {
			return nil, err
		}
	}
	if sender == "" {
		return state, nil
	}
	return state, add(matrix.TypeMember, string(sender))
}

// cleanStripped makes stripped state, for clients, of what another server sent: stripped events or whole ones. What is not well formed is left out.
// Of m.room.create a little more is kept. Spec v1.19 client-server-api/#stripped-state
func cleanStripped(events []json.RawMessage) json.RawMessage {
	kept := []json.RawMessage{}
	size := 0
	for _, raw := range events[:min(len(events), maxStripped)] {
		var e struct {
			Content        map[string]json.RawMessage `json:"content"`
			OriginServerTS json.RawMessage            `json:"origin_server_ts,omitempty"`
			Sender         matrix.UserID              `json:"sender"`
			StateKey       *string                    `json:"state_key"`
			Type           string                     `json:"type"`
		}
		if json.Unmarshal(raw, &e) != nil || e.Content == nil || e.StateKey == nil || e.Type == "" {
			continue
		}
		if _, err := matrix.ParseUserID(string(e.Sender)); err != nil {
			continue
		}
		if e.Type != matrix.TypeCreate {
			e.OriginServerTS = nil
		}
		clean, err := json.Marshal(e)
		if size += len(clean); err != nil || size > maxStrippedBytes {
			continue
		}
		kept = append(kept, clean)
	}
	all, _ := json.Marshal(kept) // of parts that have been encoded
	return all
}
