package room

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// What these methods return is written for the reader: JSON of events in the client format, with bundled aggregations. All of
// them check that the reader may see what is asked for; M_FORBIDDEN otherwise.

// access is what a user may read of a room.
type access struct {
	room   *Room
	snap   *Snapshot
	viewer *viewer
	// root is the state that the user may see: the current one, or that when the user left.
	root storage.StateRoot
	// until is the last stream position that the user may look at.
	until int64
}

// access finds out what a user may read: members all that their history visibility allows, former members what was when they left, others only
// rooms that are world-readable now. M_FORBIDDEN otherwise.
func (s *Service) access(ctx context.Context, room matrix.RoomID, user matrix.UserID) (*access, error) {
	r, err := s.Room(ctx, room)
	if errors.Is(err, errNoRoom) {
		return nil, matrix.Forbidden("you are not in this room")
	}
	if err != nil {
		return nil, err
	}
	a := &access{room: r, snap: r.Snapshot()}
	a.root, a.until = a.snap.Root, a.snap.Pos
	if a.viewer, err = s.viewer(ctx, user, r.Num, room); err != nil {
		return nil, err
	}
	if a.viewer.joinedNow || a.snap.HistoryVisibility == visibilityWorldReadable && a.snap.Create != nil {
		return a, nil
	}
	if a.viewer.joinedUntil > 0 {
		m, err := s.Membership(ctx, room, user)
		if err != nil {
			return nil, err
		}
		if !m.Forgotten {
			a.until = a.viewer.joinedUntil
			a.root, err = s.RootAt(ctx, room, a.until)
			return a, err
		}
	}
	return nil, matrix.Forbidden("you are not in this room")
}

// accessWhole is access for what shows the members of a room: it waits for them. Errors: M_FORBIDDEN, M_UNABLE_DUE_TO_PARTIAL_STATE.
func (s *Service) accessWhole(ctx context.Context, room matrix.RoomID, user matrix.UserID) (*access, error) {
	a, err := s.access(ctx, room, user)
	if err != nil || !a.snap.PartialState {
		return a, err
	}
	if err := s.AwaitWhole(ctx, room, clientPatience); err != nil {
		return nil, err
	}
	return s.access(ctx, room, user)
}

// State is GET /rooms/{room}/state: the current state, or the state as the user left it. It writes a JSON array to w, a piece at a time:
// an error after the first leaves it unfinished.
func (s *Service) State(ctx context.Context, w io.Writer, room matrix.RoomID, r Reader) error {
	a, err := s.accessWhole(ctx, room, r.User)
	if err != nil {
		return err
	}
	list := listWriter{w: w}
	list.begin("[")
	for events, err := range s.statePieces(ctx, a.room.Num, a.root, storage.AllState) {
		if err == nil {
			err = s.listState(ctx, &list, events)
		}
		if err != nil {
			return err
		}
	}
	return list.end("]")
}

// statePiece is how many events of a state are in memory at once while it is written: a room may have hundreds of thousands, and many
// may ask for them at once.
const statePiece = 500

// statePieces reads the events of a state piece by piece, in the order in which they came. It ends with the first error.
func (s *Service) statePieces(ctx context.Context, room int64, root storage.StateRoot, part storage.StatePart) iter.Seq2[[]*storage.Event, error] {
	return func(yield func([]*storage.Event, error) bool) {
		nums, err := s.o.DB.StateNums(ctx, room, root, part, nil)
		if err != nil {
			yield(nil, err)
			return
		}
		slices.Sort(nums) // those that came together lie together
		for piece := range slices.Chunk(nums, statePiece) {
			if events, err := s.o.DB.Events(ctx, piece); !yield(events, err) || err != nil {
				return
			}
		}
	}
}

func (s *Service) listState(ctx context.Context, list *listWriter, events []*storage.Event) error {
	written, err := s.stateClients(ctx, events)
	if err != nil {
		return err
	}
	for _, one := range written {
		list.item(one)
	}
	return list.flush()
}

// listWriter writes JSON that ends in a long list, a piece at a time.
type listWriter struct {
	w     io.Writer
	buf   []byte
	items bool
}

func (l *listWriter) begin(opening string) { l.buf = append(l.buf, opening...) }

func (l *listWriter) item(raw []byte) {
	if l.items {
		l.buf = append(l.buf, ',')
	}
	l.items = true
	l.buf = append(l.buf, raw...)
}

func (l *listWriter) flush() error {
	_, err := l.w.Write(l.buf)
	l.buf = l.buf[:0]
	return err
}

func (l *listWriter) end(closing string) error {
	l.buf = append(l.buf, closing...)
	return l.flush()
}

// stateClients writes state events as they are in a list of state: without what depends on the reader.
func (s *Service) stateClients(ctx context.Context, events []*storage.Event) ([]json.RawMessage, error) {
	all := make([]json.RawMessage, len(events))
	for i, e := range events {
		o := matrix.ClientOptions{HasAge: true, AgeMS: s.o.Now().UnixMilli() - e.OriginServerTS()}
		if err := s.unsigned(ctx, &o, e, nil); err != nil {
			return nil, err
		}
		all[i] = e.AppendClient(make([]byte, 0, len(e.JSON())), &o)
	}
	return all, nil
}

// StateEvent is GET /rooms/{room}/state/{type}/{key}: the content, or with wholeEvent the event. M_NOT_FOUND if there is none.
func (s *Service) StateEvent(ctx context.Context, room matrix.RoomID, r Reader, typ, stateKey string, wholeEvent bool) (json.RawMessage, error) {
	a, err := s.access(ctx, room, r.User)
	if err != nil {
		return nil, err
	}
	e, err := s.stateEvent(ctx, a.room.Num, a.root, typ, stateKey, nil)
	if err == nil && e == nil && typ == matrix.TypeMember && a.snap.PartialState {
		if a, err = s.accessWhole(ctx, room, r.User); err == nil {
			e, err = s.stateEvent(ctx, a.room.Num, a.root, typ, stateKey, nil)
		}
	}
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, matrix.NotFound("the room has no such state")
	}
	if !wholeEvent {
		return e.Content(), nil
	}
	written, err := s.stateClients(ctx, []*storage.Event{e})
	if err != nil {
		return nil, err
	}
	return written[0], nil
}

// MembersRequest is GET /rooms/{room}/members.
type MembersRequest struct {
	// At is a sync or messages token at which to look; "" means now.
	At            string
	Membership    string // only this one; "" is all
	NotMembership string // not this one
}

// Members writes the {"chunk": …} of member events to w, as State does.
func (s *Service) Members(ctx context.Context, w io.Writer, room matrix.RoomID, r Reader, q MembersRequest) error {
	a, err := s.accessWhole(ctx, room, r.User)
	if err != nil {
		return err
	}
	root, err := s.rootOfToken(ctx, a, q.At)
	if err != nil {
		return err
	}
	list := listWriter{w: w}
	list.begin(`{"chunk":[`)
	for members, err := range s.statePieces(ctx, a.room.Num, root, storage.MembersState) {
		if err == nil {
			err = s.listState(ctx, &list, slices.DeleteFunc(members, func(e *storage.Event) bool {
				m := e.Membership()
				return q.Membership != "" && m != q.Membership || q.NotMembership != "" && m == q.NotMembership
			}))
		}
		if err != nil {
			return err
		}
	}
	return list.end(`]}`)
}

// rootOfToken is the state at a token, but none later than the reader may see.
func (s *Service) rootOfToken(ctx context.Context, a *access, token string) (storage.StateRoot, error) {
	if token == "" {
		return a.root, nil
	}
	at, pos, err := parseToken(token)
	if err != nil {
		return a.root, err
	}
	if at == nil {
		root, err := s.RootAt(ctx, a.room.ID, min(pos, a.until))
		if err == nil && root.Members == (storage.StateRoot{}).Members { // before the room began, nearest to which is its beginning
			root, err = s.o.DB.FirstRoot(ctx, a.room.Num)
		}
		return root, err
	}
	events, err := s.o.DB.EventsBefore(ctx, a.room.Num, storage.Place(*at), 1)
	if err != nil || len(events) == 0 || events[0].Pos > a.until {
		return a.root, err
	}
	return s.after(ctx, events[0], nil)
}

// textOrNull is a JSON text as it is, and null for anything else.
func textOrNull(raw json.RawMessage) json.RawMessage {
	if len(raw) > 0 && raw[0] == '"' {
		return raw
	}
	return json.RawMessage("null")
}

// JoinedMembers writes the {"joined": …} of GET /rooms/{room}/joined_members to w, as State does. Only members may ask: M_FORBIDDEN.
func (s *Service) JoinedMembers(ctx context.Context, w io.Writer, room matrix.RoomID, user matrix.UserID) error {
	a, err := s.accessWhole(ctx, room, user)
	if err != nil {
		return err
	}
	if !a.viewer.joinedNow {
		return matrix.Forbidden("you are not in this room")
	}
	list := listWriter{w: w}
	list.begin(`{"joined":{`)
	for events, err := range s.statePieces(ctx, a.room.Num, a.root, storage.MembersState) {
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Membership() != matrix.Join {
				continue
			}
			key, err := json.Marshal(stateKey(e.Event))
			if err != nil {
				return err
			}
			list.item(slices.Concat(key, []byte(`:{"display_name":`), textOrNull(e.ContentMember("displayname")),
				[]byte(`,"avatar_url":`), textOrNull(e.ContentMember("avatar_url")), []byte(`}`)))
		}
		if err := list.flush(); err != nil {
			return err
		}
	}
	return list.end(`}}`)
}

// EventFilter chooses events of rooms. A nil list wants all, an empty one none; '*' in types stands for any text.
// Spec v1.19 client-server-api/#filtering
type EventFilter struct {
	Limit                     *int            `json:"limit"`
	Types                     []string        `json:"types"`
	NotTypes                  []string        `json:"not_types"`
	Senders                   []matrix.UserID `json:"senders"`
	NotSenders                []matrix.UserID `json:"not_senders"`
	Rooms                     []matrix.RoomID `json:"rooms"`
	NotRooms                  []matrix.RoomID `json:"not_rooms"`
	ContainsURL               *bool           `json:"contains_url"`
	LazyLoadMembers           bool            `json:"lazy_load_members"`
	IncludeRedundantMembers   bool            `json:"include_redundant_members"`
	UnreadThreadNotifications bool            `json:"unread_thread_notifications"`
	RelatedByRelTypes         []string        `json:"related_by_rel_types"`
	RelatedBySenders          []matrix.UserID `json:"related_by_senders"`
}

// Allows reports whether the filter lets an event through; what it says of limits, rooms and relations is not looked at. nil lets
// all.
func (f *EventFilter) Allows(e *matrix.Event) bool {
	if f == nil {
		return true
	}
	matches := func(globs []string) bool {
		return slices.ContainsFunc(globs, func(g string) bool { return g == e.Type() || matchGlob(g, e.Type()) })
	}
	switch {
	case f.Types != nil && !matches(f.Types), matches(f.NotTypes):
		return false
	case f.Senders != nil && !slices.Contains(f.Senders, e.Sender()), slices.Contains(f.NotSenders, e.Sender()):
		return false
	case f.ContainsURL != nil:
		return *f.ContainsURL == containsURL(e)
	}
	return true
}

func containsURL(e *matrix.Event) bool {
	if !bytes.Contains(e.Content(), []byte(`"url"`)) {
		return false
	}
	var content map[string]json.RawMessage
	url := ""
	return json.Unmarshal(e.Content(), &content) == nil && json.Unmarshal(content["url"], &url) == nil
}

// VisibleEvent finds an event of a room that user may see; M_NOT_FOUND otherwise.
func (s *Service) VisibleEvent(ctx context.Context, room matrix.RoomID, user matrix.UserID, event matrix.EventID) (*storage.Event, error) {
	notFound := matrix.NotFound("there is no such event in this room, or you may not see it")
	r, err := s.Room(ctx, room)
	if errors.Is(err, errNoRoom) {
		return nil, notFound
	}
	if err != nil {
		return nil, err
	}
	e, err := s.o.DB.EventByID(ctx, event)
	if errors.Is(err, storage.ErrNotFound) || err == nil && e.RoomNum != r.Num {
		return nil, notFound
	}
	if err != nil {
		return nil, err
	}
	v, err := s.viewer(ctx, user, r.Num, room)
	if err != nil {
		return nil, err
	}
	if ok, err := v.sees(ctx, e); err != nil || !ok {
		return nil, errors.Join(err, firstError(err == nil, notFound))
	}
	return e, nil
}

// firstError is err if the condition holds, else nil.
func firstError(holds bool, err error) error {
	if holds {
		return err
	}
	return nil
}

// Event is GET /rooms/{room}/event/{event}. M_NOT_FOUND if the reader may not see it.
func (s *Service) Event(ctx context.Context, room matrix.RoomID, r Reader, event matrix.EventID) (json.RawMessage, error) {
	e, err := s.VisibleEvent(ctx, room, r.User, event)
	if err != nil {
		return nil, err
	}
	return s.AppendClient(ctx, nil, e, r)
}

// maxNear is how many events are looked at for one that may be seen.
const maxNear = 100

// TimestampToEvent finds the event closest to ts (milliseconds since 1970), at or after it, or with backwards at or before it, that the user may see,
// asking other servers when this one has a gap there. M_NOT_FOUND if there is none.
// Spec v1.19 client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event
func (s *Service) TimestampToEvent(ctx context.Context, room matrix.RoomID, user matrix.UserID, ts int64, backwards bool) (TimestampToEventResponse, error) {
	a, err := s.access(ctx, room, user)
	if err != nil {
		return TimestampToEventResponse{}, err
	}
	from := ts
	if floor := a.viewer.past.floor(); !backwards { // what is older has mostly gone
		from = max(ts, floor)
	}
	if backwards && a.until < a.snap.Pos { // who has left sees nothing of what came after
		last, err := s.o.DB.EventsInStream(ctx, a.room.Num, 0, a.until, 1)
		if err != nil {
			return TimestampToEventResponse{}, err
		}
		if len(last) > 0 {
			from = min(ts, last[0].OriginServerTS())
		}
	}
	var e *storage.Event
	for limit := 1; limit <= maxNear && e == nil; limit *= maxNear {
		near, err := s.o.DB.EventsNear(ctx, a.room.Num, from, backwards, limit)
		if err != nil {
			return TimestampToEventResponse{}, err
		}
		if e, err = a.firstVisible(ctx, near); err != nil {
			return TimestampToEventResponse{}, err
		}
	}
	if a.snap.row.Flags&storage.HasMissing != 0 && (e == nil || e.OriginServerTS() != ts) {
		if found, ok := s.remoteTimestampToEvent(ctx, a, ts, backwards, e); ok {
			return found, nil
		}
	}
	if e == nil {
		return TimestampToEventResponse{}, matrix.NotFound("there is no event on that side of that time")
	}
	return TimestampToEventResponse{EventID: e.ID(), OriginServerTS: e.OriginServerTS()}, nil
}

// firstVisible is the first of some events that the viewer may see; nil if there is none.
func (a *access) firstVisible(ctx context.Context, events []*storage.Event) (*storage.Event, error) {
	for _, e := range events {
		if ok, err := a.viewer.sees(ctx, e); err != nil || ok {
			return e, err
		}
	}
	return nil, nil
}
