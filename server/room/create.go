package room

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// CreateRequest is the body of POST /createRoom. Spec v1.19 client-server-api/#post_matrixclientv3createroom
type CreateRequest struct {
	Visibility                string           `json:"visibility"` // "public" or "private"; "" is private
	RoomAliasName             string           `json:"room_alias_name"`
	Name                      string           `json:"name"`
	Topic                     string           `json:"topic"`
	Invite                    []matrix.UserID  `json:"invite"`
	Invite3PID                []Invite3PID     `json:"invite_3pid"`
	RoomVersion               string           `json:"room_version"`
	CreationContent           json.RawMessage  `json:"creation_content"`
	InitialState              []InitialState   `json:"initial_state"`
	Preset                    string           `json:"preset"`
	IsDirect                  bool             `json:"is_direct"`
	PowerLevelContentOverride json.RawMessage  `json:"power_level_content_override"`
	Creator                   matrix.UserID    `json:"-"`
	Device                    matrix.DeviceID  `json:"-"`
	predecessor               *roomPredecessor // of an upgrade
}

type roomPredecessor struct {
	RoomID  matrix.RoomID  `json:"room_id"`
	EventID matrix.EventID `json:"event_id,omitempty"`
}

// InitialState is one state event of a new room.
type InitialState struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// Invite3PID is an invite by e-mail address or the like. This server has no identity server, so it is refused.
type Invite3PID struct {
	IDServer      string `json:"id_server"`
	IDAccessToken string `json:"id_access_token"`
	Medium        string `json:"medium"`
	Address       string `json:"address"`
}

// The presets. Spec v1.19 client-server-api/#post_matrixclientv3createroom
const (
	presetPrivate        = "private_chat"
	presetTrustedPrivate = "trusted_private_chat"
	presetPublic         = "public_chat"
)

// creation is a room that is being made.
type creation struct {
	r       *CreateRequest
	version *matrix.RoomVersion
	create  json.RawMessage // content of the create event
	alias   matrix.RoomAlias
}

// Create makes a room, with its alias and its entry in the room list, and invites. Errors: M_ROOM_IN_USE (alias),
// M_UNSUPPORTED_ROOM_VERSION, M_INVALID_ROOM_STATE, M_INVALID_PARAM, M_BAD_JSON.
func (s *Service) Create(ctx context.Context, r CreateRequest) (matrix.RoomID, error) {
	c, err := s.checkCreate(&r)
	if err != nil {
		return "", err
	}
	create, room, err := s.buildCreate(c)
	if err != nil {
		return "", err
	}
	if c.alias != "" {
		err := s.o.DB.CreateAlias(ctx, storage.Alias{Alias: c.alias, RoomID: room, Creator: r.Creator, CreatedMS: s.o.Now().UnixMilli()})
		if errors.Is(err, storage.ErrTaken) {
			return "", matrix.RoomInUse("the alias %s is taken", c.alias)
		}
		if err != nil {
			return "", err
		}
	}
	if err := s.createRoom(ctx, c, create, room); err != nil {
		if c.alias != "" {
			err = errors.Join(err, s.o.DB.DeleteAlias(context.WithoutCancel(ctx), c.alias))
		}
		return "", err
	}
	if r.Visibility == "public" {
		if err := s.o.DB.SetPublished(ctx, "", room, true); err != nil {
			return "", err
		}
	}
	for _, user := range r.Invite {
		if user.Server() == s.o.ServerName || user == r.Creator {
			continue
		}
		err := s.Invite(ctx, MemberRequest{Room: room, Sender: r.Creator, Target: user, IsDirect: r.IsDirect})
		if err != nil { // the room is there: that one of many could not be invited does not undo it
			s.o.Log.Warn("invite into new room", "room", room, "user", user, "err", err)
		}
	}
	return room, nil
}

// checkCreate checks what can be checked before anything is made.
func (s *Service) checkCreate(r *CreateRequest) (*creation, error) {
	c := &creation{r: r}
	if r.RoomVersion == "" {
		r.RoomVersion = s.o.Config.DefaultVersion
	}
	if c.version = matrix.LookupRoomVersion(r.RoomVersion); c.version == nil {
		return nil, matrix.UnsupportedRoomVersion("this server does not support room version %q", r.RoomVersion)
	}
	switch r.Visibility {
	case "", "private", "public":
	default:
		return nil, matrix.InvalidParam("visibility must be public or private")
	}
	switch r.Preset {
	case presetPrivate, presetTrustedPrivate, presetPublic:
	case "":
		if r.Preset = presetPrivate; r.Visibility == "public" {
			r.Preset = presetPublic
		}
	default:
		return nil, matrix.InvalidParam("preset must be private_chat, public_chat or trusted_private_chat")
	}
	if len(r.Invite3PID) > 0 {
		return nil, matrix.ThreePIDDenied("this server has no identity server")
	}
	if len(r.Invite) > s.o.Config.MaxInvites {
		return nil, matrix.InvalidParam("at most %d users may be invited at once", s.o.Config.MaxInvites)
	}
	for _, user := range r.Invite {
		if _, err := matrix.ParseUserID(string(user)); err != nil {
			return nil, err
		}
	}
	if r.RoomAliasName != "" {
		alias, err := matrix.ParseRoomAlias("#" + r.RoomAliasName + ":" + string(s.o.ServerName))
		if err != nil {
			return nil, err
		}
		if alias.Localpart() != r.RoomAliasName {
			return nil, matrix.InvalidParam("room_alias_name is the part of the alias before the colon")
		}
		c.alias = alias
	}
	for i := range r.InitialState {
		if r.InitialState[i].Type == "" {
			return nil, matrix.BadJSON("initial_state needs a type for each event")
		}
		if len(r.InitialState[i].Content) == 0 {
			r.InitialState[i].Content = json.RawMessage("{}")
		}
	}
	var err error
	c.create, err = s.createContent(c)
	return c, err
}

// createContent is the content of m.room.create.
func (s *Service) createContent(c *creation) (json.RawMessage, error) {
	content := map[string]json.RawMessage{}
	if len(c.r.CreationContent) > 0 {
		if err := json.Unmarshal(c.r.CreationContent, &content); err != nil || content == nil {
			return nil, matrix.BadJSON("creation_content must be a JSON object")
		}
	}
	fields := map[string]any{"room_version": c.version.ID}
	delete(content, "creator")
	if c.version.CreatorInContent {
		fields["creator"] = string(c.r.Creator)
	}
	if c.r.predecessor != nil {
		fields["predecessor"] = c.r.predecessor
	}
	if c.version.PrivilegedCreators {
		creators, err := c.additionalCreators(content)
		if err != nil {
			return nil, err
		}
		if len(creators) > 0 {
			fields["additional_creators"] = creators
		}
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	return withFields(raw, fields)
}

// additionalCreators are those asked for, and in a trusted private chat the invited.
func (c *creation) additionalCreators(content map[string]json.RawMessage) ([]matrix.UserID, error) {
	var creators []matrix.UserID
	if raw, ok := content["additional_creators"]; ok {
		if err := json.Unmarshal(raw, &creators); err != nil {
			return nil, matrix.InvalidParam("additional_creators must be a list of user IDs")
		}
	}
	for _, user := range creators {
		if _, err := matrix.ParseUserID(string(user)); err != nil {
			return nil, err
		}
	}
	if c.r.Preset == presetTrustedPrivate {
		for _, user := range c.r.Invite {
			if !slices.Contains(creators, user) {
				creators = append(creators, user)
			}
		}
	}
	return creators, nil
}

// buildCreate makes the create event, and the room ID, which in new versions follows from it.
func (s *Service) buildCreate(c *creation) (*matrix.Event, matrix.RoomID, error) {
	b := matrix.Builder{Sender: c.r.Creator, Type: matrix.TypeCreate, StateKey: new(string), Content: c.create, Depth: 1, Time: s.o.Now()}
	if !c.version.RoomIDIsCreateID {
		b.RoomID = matrix.RoomID("!" + rand.Text()[:18] + ":" + string(s.o.ServerName))
	}
	e, err := b.Build(c.version, s.o.ServerName, s.o.Key)
	if err != nil {
		return nil, "", err
	}
	return e, e.RoomID(), nil
}

// createRoom writes the room with its first events, in the order that the spec gives.
func (s *Service) createRoom(ctx context.Context, c *creation, create *matrix.Event, room matrix.RoomID) error {
	join, err := s.memberContent(ctx, c.r.Creator, matrix.Join, "", nil)
	if err != nil {
		return err
	}
	states, err := c.states(s.o.ServerName)
	if err != nil {
		return err
	}
	var invites []InitialState
	for _, user := range c.r.Invite {
		if user.Server() == s.o.ServerName && user != c.r.Creator {
			content, err := s.inviteContent(ctx, MemberRequest{Target: user, IsDirect: c.r.IsDirect})
			if err != nil {
				return err
			}
			invites = append(invites, InitialState{matrix.TypeMember, string(user), content})
		}
	}
	return s.updateNew(ctx, room, c.version, func(u *update) error {
		if u.snap.stored {
			return matrix.RoomInUse("there is such a room already")
		}
		if err := u.allow(create); err != nil {
			return err
		}
		if _, err := u.append(entry{event: create, built: true}); err != nil {
			return err
		}
		all := append([]InitialState{{matrix.TypeMember, string(c.r.Creator), join}}, states...)
		for _, st := range append(all, invites...) {
			if err := u.sendInitial(c.r.Creator, st); err != nil {
				return err
			}
		}
		return nil
	})
}

func (u *update) sendInitial(sender matrix.UserID, st InitialState) error {
	e, err := u.build(&matrix.Builder{Sender: sender, Type: st.Type, StateKey: &st.StateKey, Content: st.Content})
	if err != nil {
		return err
	}
	if err := u.allow(e); err != nil {
		if matrix.ErrorCode(err) == "M_FORBIDDEN" {
			return matrix.InvalidRoomState("the state %s of the room is not allowed: %s", st.Type, err.(*matrix.Error).Message)
		}
		return err
	}
	_, err = u.append(entry{event: e, before: u.snap.Root, built: true})
	return err
}

// states are the state events of a new room after its creator's join, in their order.
func (c *creation) states(server matrix.ServerName) ([]InitialState, error) {
	given := map[string]bool{} // by type, for an empty state key
	for _, st := range c.r.InitialState {
		if st.StateKey == "" {
			given[st.Type] = true
		}
	}
	var all []InitialState
	add := func(typ string, content map[string]any) error {
		raw, err := json.Marshal(content)
		all = append(all, InitialState{Type: typ, Content: raw})
		return err
	}
	if !given[matrix.TypePowerLevels] {
		levels, err := c.powerLevels()
		if err != nil {
			return nil, err
		}
		if err := add(matrix.TypePowerLevels, levels); err != nil {
			return nil, err
		}
	}
	rule := matrix.JoinRuleInvite
	if c.r.Preset == presetPublic {
		rule = matrix.JoinRulePublic
	}
	preset := []struct {
		typ     string
		content map[string]any
		wanted  bool
	}{
		{matrix.TypeCanonicalAlias, map[string]any{"alias": c.alias}, c.alias != ""},
		{matrix.TypeJoinRules, map[string]any{"join_rule": rule}, true},
		{matrix.TypeHistoryVisibility, map[string]any{"history_visibility": visibilityShared}, true},
		{matrix.TypeGuestAccess, map[string]any{"guest_access": "can_join"}, c.r.Preset != presetPublic},
	}
	for _, p := range preset {
		if p.wanted && !given[p.typ] {
			if err := add(p.typ, p.content); err != nil {
				return nil, err
			}
		}
	}
	// Power levels come first even where they are given: the rest of the state may depend on them.
	for _, powers := range []bool{true, false} {
		for _, st := range c.r.InitialState {
			if (st.Type == matrix.TypePowerLevels && st.StateKey == "") == powers {
				all = append(all, st)
			}
		}
	}
	if given[matrix.TypePowerLevels] { // before the events of the preset
		i := slices.IndexFunc(all, func(st InitialState) bool { return st.Type == matrix.TypePowerLevels })
		powers := all[i]
		all = slices.Insert(slices.Delete(all, i, i+1), 0, powers)
	}
	if c.r.Name != "" {
		if err := add(matrix.TypeName, map[string]any{"name": c.r.Name}); err != nil {
			return nil, err
		}
	}
	if c.r.Topic != "" {
		content := map[string]any{"topic": c.r.Topic, "m.topic": map[string]any{"m.text": []map[string]any{{"body": c.r.Topic}}}}
		if err := add(matrix.TypeTopic, content); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// powerLevels is the content of the first m.room.power_levels.
func (c *creation) powerLevels() (map[string]any, error) {
	tombstone := 100
	users := map[matrix.UserID]int{}
	if c.version.PrivilegedCreators {
		tombstone = 150 // Spec v1.19 client-server-api/#mroompower_levels: above that of any but the creators
	} else {
		users[c.r.Creator] = 100
		if c.r.Preset == presetTrustedPrivate {
			for _, user := range c.r.Invite {
				users[user] = 100
			}
		}
	}
	levels := map[string]any{
		"users": users, "users_default": 0, "events_default": 0, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": 0, "historical": 100,
		"notifications": map[string]int{"room": 50},
		"events": map[string]int{
			matrix.TypeName: 50, matrix.TypeAvatar: 50, matrix.TypeCanonicalAlias: 50, matrix.TypePowerLevels: 100,
			matrix.TypeHistoryVisibility: 100, matrix.TypeTombstone: tombstone, matrix.TypeServerACL: 100, matrix.TypeEncryption: 100,
		},
	}
	if c.r.Preset == presetPublic {
		levels["invite"] = 50
	}
	if len(c.r.PowerLevelContentOverride) > 0 {
		var override map[string]json.RawMessage
		if err := json.Unmarshal(c.r.PowerLevelContentOverride, &override); err != nil {
			return nil, matrix.BadJSON("power_level_content_override must be a JSON object")
		}
		for key, value := range override {
			levels[key] = value
		}
	}
	return levels, nil
}

// UpgradeRequest is POST /rooms/{room}/upgrade.
type UpgradeRequest struct {
	Room               matrix.RoomID   `json:"-"`
	User               matrix.UserID   `json:"-"`
	NewVersion         string          `json:"new_version"`
	AdditionalCreators []matrix.UserID `json:"additional_creators"`
}

// copied are the state events that a room takes along when it is upgraded, those with an empty state key.
// Spec v1.19 client-server-api/#server-behaviour-18
var copied = []string{
	matrix.TypePowerLevels, matrix.TypeJoinRules, matrix.TypeHistoryVisibility, matrix.TypeGuestAccess, matrix.TypeName, matrix.TypeTopic,
	matrix.TypeAvatar, matrix.TypeEncryption, matrix.TypeServerACL, matrix.TypePinnedEvents,
}

// Upgrade makes a room of another version that replaces room: tombstone, copied state, moved aliases.
// Errors: M_UNSUPPORTED_ROOM_VERSION, M_FORBIDDEN. Spec v1.19 client-server-api/#room-upgrades
func (s *Service) Upgrade(ctx context.Context, r UpgradeRequest) (matrix.RoomID, error) {
	version := matrix.LookupRoomVersion(r.NewVersion)
	if version == nil {
		return "", matrix.UnsupportedRoomVersion("this server does not support room version %q", r.NewVersion)
	}
	// 1. Checks that the user has permission to send m.room.tombstone events in the room.
	old, err := s.joinedRoom(ctx, r.Room, r.User)
	if err != nil {
		return "", err
	}
	snap := old.Snapshot()
	if !snap.Power.CanSend(r.User, matrix.TypeTombstone, true) {
		return "", matrix.Forbidden("you may not upgrade this room")
	}
	// 2. Creates a replacement room with a m.room.create event containing a predecessor field.
	// 3. Replicates transferable state events to the new room.
	create, err := s.successor(ctx, old, snap, r, version)
	if err != nil {
		return "", err
	}
	room, err := s.Create(ctx, *create)
	if err != nil {
		return "", err
	}
	// 4. Moves any local aliases to the new room.
	err = s.o.DB.Write(ctx, func(tx *storage.Tx) error { return tx.MoveAliases(r.Room, room) })
	if err != nil {
		return "", err
	}
	if published, err := s.o.DB.Published(ctx, r.Room); err != nil {
		return "", err
	} else if published {
		if err := errors.Join(s.o.DB.SetPublished(ctx, "", room, true), s.o.DB.SetPublished(ctx, "", r.Room, false)); err != nil {
			return "", err
		}
	}
	if err := s.moveCanonicalAlias(ctx, old, snap, r.User, room); err != nil {
		return "", err
	}
	// 5. Sends a m.room.tombstone event to the old room.
	content, err := json.Marshal(map[string]any{"body": "This room has been replaced", "replacement_room": room})
	if err != nil {
		return "", err
	}
	if _, err := s.Send(ctx, SendRequest{Room: r.Room, Sender: r.User, Type: matrix.TypeTombstone, StateKey: new(string), Content: content}); err != nil {
		return "", err
	}
	// 6. If possible, the power levels in the old room should also be modified to prevent sending of events and inviting new users.
	return room, s.quieten(ctx, old, r.User)
}

// successor is the room that replaces old.
func (s *Service) successor(ctx context.Context, old *Room, snap *Snapshot, r UpgradeRequest, version *matrix.RoomVersion) (*CreateRequest, error) {
	create := &CreateRequest{Creator: r.User, RoomVersion: version.ID, Preset: presetPrivate}
	create.predecessor = &roomPredecessor{RoomID: r.Room}
	if len(snap.Tip) > 0 && !version.RoomIDIsCreateID {
		create.predecessor.EventID = snap.Tip[0].ID()
	}
	var content map[string]json.RawMessage
	if err := json.Unmarshal(snap.Create.Content(), &content); err != nil {
		return nil, err
	}
	for _, key := range []string{"creator", "room_version", "predecessor", "additional_creators"} {
		delete(content, key)
	}
	if len(r.AdditionalCreators) > 0 {
		raw, err := json.Marshal(r.AdditionalCreators)
		if err != nil {
			return nil, err
		}
		content["additional_creators"] = raw
	}
	var err error
	if create.CreationContent, err = json.Marshal(content); err != nil {
		return nil, err
	}
	for _, typ := range copied {
		e, err := s.stateEvent(ctx, old.Num, snap.Root, typ, "", nil)
		if err != nil {
			return nil, err
		}
		if e == nil {
			continue
		}
		state := InitialState{Type: typ, Content: e.Content()}
		if typ == matrix.TypePowerLevels {
			if state.Content, err = movedPowers(state.Content, snap, r, version); err != nil {
				return nil, err
			}
		}
		create.InitialState = append(create.InitialState, state)
	}
	events, err := s.StateEvents(ctx, old.ID, snap.Root, storage.AllState)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		if e.Type() == matrix.TypeMember && e.Membership() == matrix.Ban || snap.RoomType == "m.space" && e.Type() == matrix.TypeSpaceChild {
			create.InitialState = append(create.InitialState, InitialState{e.Type(), stateKey(e.Event), e.Content()})
		}
	}
	return create, nil
}

// movedPowers makes power levels fit for another room version: creators who have infinite power must not be listed, and who had it keeps
// some where there is no such thing.
func movedPowers(content json.RawMessage, snap *Snapshot, r UpgradeRequest, version *matrix.RoomVersion) (json.RawMessage, error) {
	var levels map[string]json.RawMessage
	users := map[matrix.UserID]json.RawMessage{}
	if err := json.Unmarshal(content, &levels); err != nil {
		return nil, err
	}
	_ = json.Unmarshal(levels["users"], &users) // absent, or what a very old room has there
	if version.PrivilegedCreators {
		for _, user := range append([]matrix.UserID{r.User}, r.AdditionalCreators...) {
			delete(users, user)
		}
	} else {
		for _, user := range append(matrix.Creators(snap.Create.Event), r.User) {
			if snap.Power.User(user) >= 100 {
				users[user] = json.RawMessage("100")
			}
		}
	}
	raw, err := json.Marshal(users)
	if err != nil {
		return nil, err
	}
	levels["users"] = raw
	if !version.PrivilegedCreators {
		var events map[string]int64
		if json.Unmarshal(levels["events"], &events) == nil && events[matrix.TypeTombstone] == 150 {
			events[matrix.TypeTombstone] = 100
			if levels["events"], err = json.Marshal(events); err != nil {
				return nil, err
			}
		}
	}
	return json.Marshal(levels)
}

// moveCanonicalAlias makes the canonical alias of the old room that of the new one. A user who may not do that leaves it where it is.
func (s *Service) moveCanonicalAlias(ctx context.Context, old *Room, snap *Snapshot, user matrix.UserID, room matrix.RoomID) error {
	e, err := s.stateEvent(ctx, old.Num, snap.Root, matrix.TypeCanonicalAlias, "", nil)
	if err != nil || e == nil {
		return err
	}
	for _, send := range []SendRequest{{Room: room, Content: e.Content()}, {Room: old.ID, Content: json.RawMessage("{}")}} {
		send.Sender, send.Type, send.StateKey = user, matrix.TypeCanonicalAlias, new(string)
		if err := s.unlessRefused(s.Send(ctx, send)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) unlessRefused(_ matrix.EventID, err error) error {
	if e := (*matrix.Error)(nil); errors.As(err, &e) {
		return nil
	}
	return err
}

// quieten raises the power that is needed to speak and to invite, if user may do so.
func (s *Service) quieten(ctx context.Context, old *Room, user matrix.UserID) error {
	snap := old.Snapshot()
	e, err := s.stateEvent(ctx, old.Num, snap.Root, matrix.TypePowerLevels, "", nil)
	if err != nil || e == nil {
		return err
	}
	var levels map[string]json.RawMessage
	if err := json.Unmarshal(e.Content(), &levels); err != nil {
		return err
	}
	level, err := json.Marshal(max(50, snap.Power.UsersDefault+1))
	if err != nil {
		return err
	}
	changed := maps.Clone(levels)
	if snap.Power.EventsDefault < max(50, snap.Power.UsersDefault+1) {
		changed["events_default"] = level
	}
	if snap.Power.Invite < max(50, snap.Power.UsersDefault+1) {
		changed["invite"] = level
	}
	content, err := json.Marshal(changed)
	if err != nil {
		return err
	}
	return s.unlessRefused(s.Send(ctx, SendRequest{Room: old.ID, Sender: user, Type: matrix.TypePowerLevels, StateKey: new(string), Content: content}))
}
