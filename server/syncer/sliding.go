package syncer

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
	"parley.im/parley/storage"
)

// Simplified sliding sync, MSC4186, in the shape that clients use today under
// /_matrix/client/unstable/org.matrix.simplified_msc3575/sync. A client names ranges of a list of its rooms, the newest
// first, and rooms that it has open; the server remembers, for each connection, what of each room it has sent.

// SlidingRequest is one request on a connection.
type SlidingRequest struct {
	User   matrix.UserID
	Device matrix.DeviceID
	// Pos is the pos of an earlier answer on the connection; "" begins anew.
	Pos string
	// SetPresence is "", "online", "unavailable" or "offline".
	SetPresence string
	// Timeout is how long to wait when there is nothing new.
	Timeout time.Duration
	// Body is the request's body.
	Body json.RawMessage
}

// Limits of sliding sync.
const (
	maxLists         = 100
	maxSubscriptions = 100
	maxConnections   = 20_000
	maxRequired      = 200
)

type slidingBody struct {
	ConnID        string                          `json:"conn_id"`
	Lists         map[string]slidingList          `json:"lists"`
	Subscriptions map[matrix.RoomID]slidingConfig `json:"room_subscriptions"`
	Extensions    struct {
		ToDevice struct {
			Enabled bool   `json:"enabled"`
			Since   string `json:"since"`
			Limit   int    `json:"limit"`
		} `json:"to_device"`
		E2EE        extension `json:"e2ee"`
		AccountData extension `json:"account_data"`
		Receipts    extension `json:"receipts"`
		Typing      extension `json:"typing"`
	} `json:"extensions"`
}

type extension struct {
	Enabled bool `json:"enabled"`
}

type slidingConfig struct {
	RequiredState [][2]string `json:"required_state"`
	TimelineLimit int         `json:"timeline_limit"`
}

type slidingList struct {
	slidingConfig
	Ranges  [][2]int       `json:"ranges"`
	Filters slidingFilters `json:"filters"`
}

type slidingFilters struct {
	IsDM         *bool     `json:"is_dm"`
	IsEncrypted  *bool     `json:"is_encrypted"`
	IsInvite     *bool     `json:"is_invite"`
	RoomTypes    []*string `json:"room_types"`
	NotRoomTypes []*string `json:"not_room_types"`
	Tags         []string  `json:"tags"`
	NotTags      []string  `json:"not_tags"`
	NameLike     string    `json:"room_name_like"`
}

// merge takes in what another list or subscription wants of the same room.
func (c *slidingConfig) merge(o slidingConfig) {
	c.TimelineLimit = max(c.TimelineLimit, o.TimelineLimit)
	for _, r := range o.RequiredState {
		if !slices.Contains(c.RequiredState, r) {
			c.RequiredState = append(c.RequiredState, r)
		}
	}
}

func (b *slidingBody) check() error {
	if len(b.Lists) > maxLists || len(b.Subscriptions) > maxSubscriptions || len(b.ConnID) > 255 {
		return matrix.InvalidParam("at most %d lists and %d room subscriptions", maxLists, maxSubscriptions)
	}
	configs := slices.Collect(maps.Values(b.Subscriptions))
	for _, l := range b.Lists {
		configs = append(configs, l.slidingConfig)
		for _, r := range l.Ranges {
			if r[0] < 0 || r[1] < r[0] {
				return matrix.InvalidParam("a range must be two numbers, of which the second is not lower")
			}
		}
		if len(l.Ranges) > 100 {
			return matrix.InvalidParam("at most 100 ranges")
		}
	}
	for _, c := range configs {
		if c.TimelineLimit < 0 || len(c.RequiredState) > maxRequired {
			return matrix.InvalidParam("timeline_limit must not be negative and required_state have at most %d entries", maxRequired)
		}
	}
	return nil
}

// connections are the sliding connections of everybody.
type connections struct {
	sync.Mutex
	byID map[connKey]*connection
}

type connKey struct {
	user   matrix.UserID
	device matrix.DeviceID
	id     string
}

// connection is what was sent on one connection. Two states are kept: that of the answer that the client has confirmed
// by its next request, and that of the newest, which it may not have got.
type connection struct {
	sync.Mutex
	next   int64
	states []*connState
}

type connState struct {
	n     int64
	token Token
	rooms map[matrix.RoomID]sentRoom
	lists map[string]string // what was told of each list
}

// sentRoom is what a client has of a room.
type sentRoom struct {
	upTo   int64
	config slidingConfig
}

// SlidingSync answers POST /unstable/org.matrix.simplified_msc3575/sync.
// Errors: M_UNKNOWN_POS (the connection is not known any more), M_INVALID_PARAM, M_BAD_JSON.
func (s *Service) SlidingSync(ctx context.Context, r SlidingRequest) ([]byte, error) {
	var body slidingBody
	if err := json.Unmarshal(r.Body, &body); err != nil {
		return nil, matrix.BadJSON("the body is not valid: %v", err)
	}
	if err := body.check(); err != nil {
		return nil, err
	}
	conn, base, err := s.connection(connKey{r.User, r.Device, body.ConnID}, r.Pos)
	if err != nil {
		return nil, err
	}
	end := s.syncBegins(r.User, r.Device, r.SetPresence)
	defer end()
	if err := s.catchUp(ctx); err != nil {
		return nil, err
	}
	var deadline *time.Timer
	if r.Timeout > 0 && r.Pos != "" {
		deadline = time.NewTimer(min(r.Timeout, s.o.Config.MaxTimeout))
		defer deadline.Stop()
	}
	for {
		l := &sliding{body: &body, base: base}
		l.answer = answer{s: s, r: &Request{User: r.User, Device: r.Device, UseStateAfter: true}, f: &Filter{}, initial: r.Pos == "", since: base.token, from: base.token}
		wake, _, err := l.look(ctx)
		if err != nil {
			return nil, err
		}
		out, empty, err := l.write(ctx)
		if err != nil {
			return nil, err
		}
		if !empty || deadline == nil {
			return conn.remember(base, l, out), nil
		}
		select {
		case <-wake:
		case <-deadline.C:
			deadline = nil
		case <-s.closing:
			deadline = nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// connection finds the state that the client has confirmed.
func (s *Service) connection(key connKey, pos string) (*connection, *connState, error) {
	s.sliding.Lock()
	conn := s.sliding.byID[key]
	if conn == nil || pos == "" {
		if s.sliding.byID == nil || len(s.sliding.byID) >= maxConnections {
			s.sliding.byID = map[connKey]*connection{}
		}
		conn = &connection{next: 1}
		s.sliding.byID[key] = conn
	}
	s.sliding.Unlock()
	if pos == "" {
		return conn, &connState{}, nil
	}
	conn.Lock()
	defer conn.Unlock()
	for _, state := range conn.states {
		if state.pos() == pos {
			return conn, state, nil
		}
	}
	return nil, nil, matrix.UnknownPos("this connection has been forgotten: begin anew")
}

func (c *connState) pos() string { return strconv.FormatInt(c.n, 10) + "/" + c.token.String() }

// remember keeps what the answer tells and writes the new pos into it.
func (c *connection) remember(base *connState, l *sliding, rest []byte) []byte {
	c.Lock()
	defer c.Unlock()
	state := &connState{n: c.next, token: l.to, rooms: l.sent, lists: l.told}
	c.next++
	c.states = []*connState{base, state}
	b := append(make([]byte, 0, len(rest)+64), `{"pos":"`...)
	b = append(b, state.pos()...)
	b = append(b, '"')
	return append(b, rest...)
}

// sliding is one answer while it is made.
type sliding struct {
	answer
	body *slidingBody
	base *connState
	sent map[matrix.RoomID]sentRoom
	told map[string]string
	// direct are the rooms that the user calls direct chats; tags the user's tags of rooms.
	direct map[matrix.RoomID]bool
	tags   map[matrix.RoomID][]string
}

// candidate is a room of the user, with what decides about its place in a list.
type candidate struct {
	item
	bump int64
}

// write makes the answer but for its beginning.
func (l *sliding) write(ctx context.Context) (out []byte, empty bool, err error) {
	all := l.candidates()
	if err := l.gatherBase(ctx); err != nil {
		return nil, false, err
	}
	for i := range all {
		if err := l.findBump(ctx, &all[i]); err != nil {
			return nil, false, err
		}
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Or(cmp.Compare(b.bump, a.bump), cmp.Compare(a.id, b.id)) })

	l.sent = maps.Clone(l.base.rooms)
	if l.sent == nil {
		l.sent = map[matrix.RoomID]sentRoom{}
	}
	l.told = map[string]string{}
	empty = true
	wanted := map[matrix.RoomID]*slidingConfig{}
	var b []byte
	b = append(b, `,"lists":{`...)
	for _, name := range slices.Sorted(maps.Keys(l.body.Lists)) {
		list := l.body.Lists[name]
		chosen, err := l.choose(ctx, all, &list.Filters)
		if err != nil {
			return nil, false, err
		}
		start := len(b)
		b = comma(b)
		b = appendString(b, name)
		b = l.appendList(append(b, ':'), &list, chosen, wanted)
		l.told[name] = string(b[start:])
		if l.base.lists == nil || strings.TrimPrefix(l.base.lists[name], ",") != strings.TrimPrefix(l.told[name], ",") {
			empty = false
		}
	}
	b = append(b, `},"rooms":{`...)
	for id, config := range l.body.Subscriptions {
		want(wanted, id, config)
	}
	shown := map[matrix.RoomID]bool{}
	for i := range all {
		c := &all[i]
		if c.membership == matrix.Leave || c.membership == matrix.Ban { // no list has it any more; the client has to learn why
			want(wanted, c.id, l.base.rooms[c.id].config)
		}
		config := wanted[c.id]
		if config == nil {
			continue
		}
		mark := len(b)
		b = comma(b)
		b = appendString(b, string(c.id))
		b = append(b, ':')
		something := false
		if b, something, err = l.appendRoom(ctx, b, c, *config); err != nil {
			return nil, false, err
		}
		if !something {
			b = b[:mark]
			continue
		}
		shown[c.id], empty = true, false
	}
	b = append(b, '}')
	b, some, err := l.appendExtensions(ctx, b, all, shown)
	if err != nil {
		return nil, false, err
	}
	return append(b, '}'), empty && !some, nil
}

func want(wanted map[matrix.RoomID]*slidingConfig, id matrix.RoomID, c slidingConfig) {
	if wanted[id] == nil {
		wanted[id] = &slidingConfig{RequiredState: slices.Clone(c.RequiredState), TimelineLimit: c.TimelineLimit}
		return
	}
	wanted[id].merge(c)
}

// candidates lists the user's rooms. It takes the lock anew: what is newer than the plan is told next time.
func (l *sliding) candidates() []candidate {
	l.s.mu.RLock()
	defer l.s.mu.RUnlock()
	all := make([]candidate, 0, len(l.u.rooms))
	for id, ur := range l.u.rooms {
		_, sent := l.base.rooms[id]
		switch ur.membership {
		case matrix.Join, matrix.Invite, matrix.Knock:
		default:
			if !sent || ur.pos <= l.base.token.Pos {
				continue // a room that was left is told of once
			}
		}
		rc := ur.room
		c := candidate{bump: rc.bump, item: item{
			ur: ur, rc: rc, id: id, membership: ur.membership, pos: ur.pos, num: ur.num, stripped: ur.stripped, upTo: l.to.Pos,
			window: rc.window, horizon: rc.horizon,
		}}
		if ur.membership != matrix.Join {
			c.bump = ur.pos
			c.upTo = min(c.upTo, ur.pos)
		}
		if t := l.s.typing[id]; t != nil && (t.eph > l.base.token.Eph || len(t.list) > 0) {
			c.typing, c.typingNew = t.list, t.eph > l.base.token.Eph
		}
		all = append(all, c)
	}
	return all
}

// bumps reports whether an event of this type brings its room to the top of the list.
func bumps(e *matrix.Event) bool {
	switch e.Type() {
	case "m.room.create", "m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite", "m.poll.start", "m.beacon_info":
		return true
	}
	return false
}

// findBump looks for the newest event that brought the room to the top, unless it is known.
func (l *sliding) findBump(ctx context.Context, c *candidate) error {
	if c.bump != 0 {
		return nil
	}
	page, err := l.s.o.Rooms.Timeline(ctx, c.id, 0, l.to.Pos, 50)
	if err != nil && !isNotFound(err) {
		return err
	}
	c.bump = c.pos
	for _, e := range page.Events {
		if bumps(e.Event) {
			c.bump = max(c.bump, e.Pos)
		}
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	c.rc.bump = max(c.rc.bump, c.bump)
	return nil
}

// accountData is all account data of a user as of a position.
type accountData struct {
	upTo   int64
	byRoom map[matrix.RoomID][]storage.AccountData
	direct map[matrix.RoomID]bool
	tags   map[matrix.RoomID][]string
}

// gatherBase finds the account data that filters ask for and the extensions tell: from memory unless it has changed.
func (l *sliding) gatherBase(ctx context.Context) error {
	var err error
	if l.ignored, err = l.s.o.Users.Ignored(ctx, l.r.User); err != nil {
		return err
	}
	l.s.mu.RLock()
	newest := l.u.accountPos
	l.s.mu.RUnlock()
	data := l.u.account.Load()
	if data == nil || data.upTo < newest || data.upTo > l.to.Pos {
		all, err := l.s.o.DB.AccountDataSince(ctx, l.r.User, 0, l.to.Pos)
		if err != nil {
			return err
		}
		data = newAccountData(all, l.to.Pos)
		l.u.account.Store(data)
	}
	l.account, l.direct, l.tags = data.byRoom, data.direct, data.tags
	return nil
}

func newAccountData(all []storage.AccountData, upTo int64) *accountData {
	data := &accountData{upTo: upTo, byRoom: map[matrix.RoomID][]storage.AccountData{}, direct: map[matrix.RoomID]bool{}, tags: map[matrix.RoomID][]string{}}
	for _, d := range all {
		data.byRoom[d.Room] = append(data.byRoom[d.Room], d)
		switch {
		case d.Room == "" && d.Type == "m.direct":
			var rooms map[matrix.UserID][]matrix.RoomID
			if json.Unmarshal(d.Content, &rooms) != nil {
				continue // the user may write anything there
			}
			for _, ids := range rooms {
				for _, id := range ids {
					data.direct[id] = true
				}
			}
		case d.Room != "" && d.Type == "m.tag":
			var tags struct {
				Tags map[string]json.RawMessage `json:"tags"`
			}
			if json.Unmarshal(d.Content, &tags) == nil {
				data.tags[d.Room] = slices.Collect(maps.Keys(tags.Tags))
			}
		}
	}
	return data
}

// choose picks the rooms that a list's filters let through.
func (l *sliding) choose(ctx context.Context, all []candidate, f *slidingFilters) ([]*candidate, error) {
	chosen := make([]*candidate, 0, len(all))
	for i := range all {
		c := &all[i]
		ok, err := l.matches(ctx, c, f)
		if err != nil {
			return nil, err
		}
		if ok {
			chosen = append(chosen, c)
		}
	}
	return chosen, nil
}

func (l *sliding) matches(ctx context.Context, c *candidate, f *slidingFilters) (bool, error) {
	switch {
	case c.membership == matrix.Leave || c.membership == matrix.Ban:
		return false, nil
	case f.IsInvite != nil && *f.IsInvite != (c.membership == matrix.Invite):
		return false, nil
	case f.IsDM != nil && *f.IsDM != l.direct[c.id]:
		return false, nil
	case f.Tags != nil && !slices.ContainsFunc(l.tags[c.id], func(t string) bool { return slices.Contains(f.Tags, t) }):
		return false, nil
	case slices.ContainsFunc(l.tags[c.id], func(t string) bool { return slices.Contains(f.NotTags, t) }):
		return false, nil
	case c.membership == matrix.Invite:
		m, err := l.memberEvent(ctx, &c.item)
		if err != nil || m != nil && l.ignored[m.Sender()] {
			return false, err
		}
	}
	if f.IsEncrypted == nil && f.RoomTypes == nil && f.NotRoomTypes == nil && f.NameLike == "" {
		return true, nil
	}
	r, err := l.roomOf(ctx, &c.item)
	if err != nil {
		return false, err
	}
	snapshot := &room.Snapshot{}
	if r != nil {
		snapshot = r.Snapshot()
	}
	is := func(t *string) bool {
		return t == nil && snapshot.RoomType == "" || t != nil && *t == snapshot.RoomType
	}
	switch {
	case f.IsEncrypted != nil && *f.IsEncrypted != snapshot.Encrypted:
		return false, nil
	case f.RoomTypes != nil && !slices.ContainsFunc(f.RoomTypes, is):
		return false, nil
	case slices.ContainsFunc(f.NotRoomTypes, is):
		return false, nil
	case f.NameLike != "" && r != nil:
		name, err := l.stateString(ctx, c.id, snapshot, "m.room.name", "name")
		return strings.Contains(strings.ToLower(name), strings.ToLower(f.NameLike)), err
	}
	return true, nil
}

func (l *sliding) stateString(ctx context.Context, id matrix.RoomID, snapshot *room.Snapshot, typ, field string) (string, error) {
	e, err := l.s.o.Rooms.StateAt(ctx, id, snapshot.Root, typ, "")
	if err != nil || e == nil {
		return "", err
	}
	return contentString(e.Event, field), nil
}

// appendList writes a list's count and its ranges, and notes which rooms are wanted by it.
func (l *sliding) appendList(b []byte, list *slidingList, chosen []*candidate, wanted map[matrix.RoomID]*slidingConfig) []byte {
	b = append(b, `{"count":`...)
	b = strconv.AppendInt(b, int64(len(chosen)), 10)
	b = append(b, `,"ops":[`...)
	first := len(b)
	ranges := list.Ranges
	if ranges == nil {
		ranges = [][2]int{{0, len(chosen)}}
	}
	for _, r := range ranges {
		if len(b) > first {
			b = append(b, ',')
		}
		b = append(b, `{"op":"SYNC","range":[`...)
		b = strconv.AppendInt(b, int64(r[0]), 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, int64(r[1]), 10)
		b = append(b, `],"room_ids":[`...)
		ids := len(b)
		for i := r[0]; i <= r[1] && i < len(chosen); i++ {
			if len(b) > ids {
				b = append(b, ',')
			}
			b = appendString(b, string(chosen[i].id))
			want(wanted, chosen[i].id, list.slidingConfig)
		}
		b = append(b, `]}`...)
	}
	return append(b, `]}`...)
}
