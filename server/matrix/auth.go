package matrix

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// AuthError says which rule rejected an event.
type AuthError struct {
	Rule   string // the rule's number in the spec of the room's version, such as "4.3.2"
	Reason string // a sentence for people
}

func (e *AuthError) Error() string { return "authorization rule " + e.Rule + ": " + e.Reason }

// AuthKeys lists the state that authorizes an event and that must be in its auth_events as far as the room has it,
// without duplicates. The create event is among them but in room version 12, where [Authorize] looks it up all the
// same. content must be canonical. Spec v1.19 server-server-api/#auth-events-selection
func AuthKeys(version *RoomVersion, sender UserID, typ string, stateKey *string, content json.RawMessage) []StateTuple {
	if typ == TypeCreate {
		return nil
	}
	keys := make([]StateTuple, 0, 6)
	if !version.RoomIDIsCreateID {
		keys = append(keys, StateTuple{TypeCreate, ""})
	}
	keys = append(keys, StateTuple{TypePowerLevels, ""}, StateTuple{TypeMember, string(sender)})
	if typ != TypeMember || stateKey == nil {
		return keys
	}
	add := func(t StateTuple) {
		if !slices.Contains(keys, t) {
			keys = append(keys, t)
		}
	}
	add(StateTuple{TypeMember, *stateKey})
	membership, _ := stringMember(content, "membership")
	if membership == Join || membership == Invite || membership == Knock {
		add(StateTuple{TypeJoinRules, ""})
	}
	if membership == Invite {
		if token, ok := stringMember(member(member(content, "third_party_invite"), "signed"), "token"); ok {
			add(StateTuple{TypeThirdPartyInvite, token})
		}
	}
	if membership == Join && version.RestrictedJoins {
		if via, ok := stringMember(content, "join_authorised_via_users_server"); ok {
			add(StateTuple{TypeMember, via})
		}
	}
	return keys
}

// AuthKeys lists the state that authorizes the event; see [AuthKeys].
func (e *Event) AuthKeys() []StateTuple {
	var stateKey *string
	if e.hasStateKey {
		stateKey = &e.stateKey
	}
	return AuthKeys(e.version, e.sender, e.typ, stateKey, e.content)
}

// AuthorizeByAuthEvents checks the event's own auth_events: no duplicates, nothing that does not belong there, nothing
// rejected, all of this room (rule 2, "considering the event's auth_events"), and then the event against the state that
// they make. authEvents are those of e.AuthEvents() in any order, all of them; for room version 12 create is the room's
// create event, in other versions it may be nil. rejected may be nil. The error is always a *AuthError.
func AuthorizeByAuthEvents(e *Event, authEvents []*Event, create *Event, rejected func(EventID) bool) error {
	if err := authorizeAuthEvents(e, authEvents, create, rejected); err != nil {
		return err
	}
	state := Lookup(authEvents)
	if !e.version.RoomIDIsCreateID {
		return Authorize(e, state)
	}
	return Authorize(e, func(typ, stateKey string) *Event {
		if typ == TypeCreate && stateKey == "" {
			return create
		}
		return state(typ, stateKey)
	})
}

func authorizeAuthEvents(e *Event, authEvents []*Event, create *Event, rejected func(EventID) bool) error {
	if e.typ == TypeCreate {
		return nil
	}
	section := "2"
	if e.version.RoomIDIsCreateID {
		section = "3"
		// 2. The room ID must be the ID of an accepted create event.
		if create == nil || create.typ != TypeCreate || create.roomID != e.roomID || rejected != nil && rejected(create.id) {
			return &AuthError{"2", "the room ID is not the ID of an accepted create event"}
		}
	}
	expected := e.AuthKeys()
	seen := make([]StateTuple, 0, len(authEvents))
	for _, a := range authEvents {
		// 2.1. No duplicate entries for a type and state key.
		if a.hasStateKey && slices.Contains(seen, a.Tuple()) {
			return &AuthError{section + ".1", fmt.Sprintf("two auth events for %s %q", a.typ, a.stateKey)}
		}
		seen = append(seen, a.Tuple())
		// 2.2. No entries that the auth events selection does not select.
		if !a.hasStateKey || !slices.Contains(expected, a.Tuple()) {
			return &AuthError{section + ".2", fmt.Sprintf("%s %q does not belong into the auth events", a.typ, a.stateKey)}
		}
		// 2.3. No entries that were rejected.
		if rejected != nil && rejected(a.id) {
			return &AuthError{section + ".3", fmt.Sprintf("the auth event %s was rejected", a.id)}
		}
		// 2.5. No entries of another room.
		if a.roomID != e.roomID {
			return &AuthError{section + ".5", fmt.Sprintf("the auth event %s is of another room", a.id)}
		}
	}
	// 2.4. A create event, up to room version 11.
	if !e.version.RoomIDIsCreateID && !slices.Contains(seen, StateTuple{TypeCreate, ""}) {
		return &AuthError{section + ".4", "no create event among the auth events"}
	}
	return nil
}

// Authorize checks the event against the authorization rules of its room version in a room state; nil allows. The
// error is always a *AuthError. state must know what e.AuthKeys lists, and the create event always. Signatures of
// servers are not verified here: [VerifyEvent] has done that. Not part of it are the rules that consider the
// event's auth_events: [AuthorizeByAuthEvents].
// Spec v1.19 rooms/v1/#authorisation-rules, rooms/v3/#authorisation-rules, rooms/v6/#authorisation-rules,
// rooms/v8/#authorisation-rules, rooms/v10/#authorisation-rules, rooms/v11/#authorisation-rules,
// rooms/v12/#authorisation-rules
func Authorize(e *Event, state StateLookup) error {
	a := authorizer{Event: e, v: e.version, state: state}
	if err := a.event(); err != nil {
		return err
	}
	return nil
}

// authorizer checks one event. The numbers in the comments are those of room version 11.
type authorizer struct {
	*Event
	v      *RoomVersion
	state  StateLookup
	create *Event
	levels *PowerLevels // loaded by power
}

// The number of the rule for members, from which those after it are counted: 4 in room versions 6 to 11, 5 where
// there is one more rule before it, on aliases (1 to 5) or on the room ID (12).
func (a *authorizer) memberRule() int {
	if a.v.AliasesRule || a.v.RoomIDIsCreateID {
		return 5
	}
	return 4
}

func deny(rule int, sub string, format string, args ...any) *AuthError {
	return &AuthError{strconv.Itoa(rule) + sub, fmt.Sprintf(format, args...)}
}

func (a *authorizer) event() *AuthError {
	// 1. The create event.
	if a.typ == TypeCreate {
		return a.createEvent()
	}
	// 2. (auth events, elsewhere) There is a create event, of this room.
	a.create = a.state(TypeCreate, "")
	if a.create == nil {
		if a.v.RoomIDIsCreateID {
			return deny(2, "", "the room has no create event")
		}
		return deny(2, ".4", "the room has no create event")
	}
	if a.v.RoomIDIsCreateID && a.create.roomID != a.roomID {
		return deny(2, "", "the room ID is not the ID of the create event")
	}
	rule := a.memberRule()
	// 3. A room that is not federated.
	if string(a.create.ContentMember("m.federate")) == "false" && a.sender.Server() != a.create.sender.Server() {
		federate := 3
		if a.v.RoomIDIsCreateID {
			federate = 4
		}
		return deny(federate, "", "the room does not federate")
	}
	// 4. in room versions 1 to 5: aliases.
	if a.v.AliasesRule && a.typ == TypeAliases {
		return a.aliases()
	}
	// 4. Members.
	if a.typ == TypeMember {
		return a.member(rule)
	}
	// 5. The sender must be in the room.
	if m := a.membershipOf(a.sender); m != Join {
		return deny(rule+1, "", "%s is not in the room", a.sender)
	}
	// 6. Third-party invites need the invite level.
	if a.typ == TypeThirdPartyInvite {
		if a.power(a.sender) < a.powerLevels().Invite {
			return deny(rule+2, ".1", "%s has not the power to invite", a.sender)
		}
		return nil
	}
	// 7. The power that the event's type requires.
	if need := a.powerLevels().Event(a.typ, a.hasStateKey); need > a.power(a.sender) {
		return deny(rule+3, "", "%s has not the power %d to send %s", a.sender, need, a.typ)
	}
	// 8. State that belongs to a user is for this user only.
	if a.hasStateKey && strings.HasPrefix(a.stateKey, "@") && a.stateKey != string(a.sender) {
		return deny(rule+4, "", "a state key that starts with @ must be the sender's user ID")
	}
	// 9. Power levels.
	if a.typ == TypePowerLevels {
		return a.powerLevelsEvent(rule + 5)
	}
	// 11. in room versions 1 and 2: redactions.
	if a.v.RedactionRule && a.typ == TypeRedaction {
		return a.redaction(rule + 6)
	}
	// 10. Otherwise, allow.
	return nil
}

// 1. The create event.
func (a *authorizer) createEvent() *AuthError {
	// 1.1. It has no prev_events.
	if len(a.prev) > 0 {
		return deny(1, ".1", "the create event has prev_events")
	}
	if a.v.RoomIDIsCreateID {
		// 1.2. in room version 12: it has no room ID.
		if member(a.json, "room_id") != nil {
			return deny(1, ".2", "the create event has a room_id")
		}
	} else if a.roomID.Server() != a.sender.Server() {
		// 1.2. The servers of room ID and sender are the same.
		return deny(1, ".2", "the room ID is of another server than the sender")
	}
	// 1.3. The room version is known.
	if version := a.ContentMember("room_version"); version != nil {
		if id, ok := stringValue(version); !ok || LookupRoomVersion(id) == nil {
			return deny(1, ".3", "the room version is not known")
		}
	}
	switch {
	case a.v.CreatorInContent:
		// 1.4. in room versions 1 to 10: there is a creator.
		if a.ContentMember("creator") == nil {
			return deny(1, ".4", "the create event has no creator")
		}
	case a.v.PrivilegedCreators:
		// 1.4. in room version 12: additional creators are valid user IDs.
		if more := a.ContentMember("additional_creators"); more != nil && !areUserIDs(more) {
			return deny(1, ".4", "additional_creators is not a list of user IDs")
		}
	}
	return nil
}

func areUserIDs(list []byte) bool {
	return elements(list, func(value []byte) bool {
		id, ok := stringValue(value)
		if !ok {
			return false
		}
		_, err := ParseUserID(id)
		return err == nil
	})
}

// 4. in room versions 1 to 5: aliases of a server are sent by its users.
func (a *authorizer) aliases() *AuthError {
	if !a.hasStateKey {
		return deny(4, ".1", "m.room.aliases has no state key")
	}
	if a.stateKey != string(a.sender.Server()) {
		return deny(4, ".2", "m.room.aliases is of another server than the sender")
	}
	return nil
}

// 5. in room version 1, 4. in 6 to 11: redactions, 11. in room versions 1 and 2.
func (a *authorizer) redaction(rule int) *AuthError {
	// 11.1. The sender may redact the events of others.
	if a.power(a.sender) >= a.powerLevels().Redact {
		return nil
	}
	// 11.2. The events are of the same server.
	if a.redacts != "" && a.redacts.Server() == a.id.Server() {
		return nil
	}
	return deny(rule, ".3", "%s may not redact events of another server", a.sender)
}

// powerLevels are those of the room, without creators of room version 12.
func (a *authorizer) powerLevels() *PowerLevels {
	if a.levels == nil {
		if p := a.state(TypePowerLevels, ""); p != nil {
			a.levels = p.powerLevels()
		} else {
			a.levels = PowerLevelsOf(a.create, nil)
		}
	}
	return a.levels
}

// power is the power of a user: infinite for creators in room version 12.
func (a *authorizer) power(u UserID) int64 {
	if a.v.PrivilegedCreators && a.isCreator(u) {
		return CreatorPower
	}
	return a.powerLevels().User(u)
}

func (a *authorizer) isCreator(u UserID) bool {
	if u == a.create.sender {
		return true
	}
	more := a.create.ContentMember("additional_creators")
	return more != nil && slices.Contains(Creators(a.create), u)
}

// membershipOf is the membership of a user in the state, "" for none.
func (a *authorizer) membershipOf(u UserID) string {
	if m := a.state(TypeMember, string(u)); m != nil {
		return m.membership
	}
	return ""
}

// 9. Power levels.
func (a *authorizer) powerLevelsEvent(rule int) *AuthError {
	// The numbers of what is checked grew with the room versions.
	sub := func(n int) string { return "." + strconv.Itoa(n) }
	users, previous := 1, 2
	if a.v.IntegerPowers {
		users, previous = 3, 4
	}
	if a.v.PrivilegedCreators {
		previous = 5
	}
	next, bad := parsePowerLevels(a.content, a.v)
	if bad != nil {
		n := users
		if a.v.IntegerPowers {
			// 9.1. to 9.3. from room version 10 on: levels are integers, users are user IDs.
			n = map[string]int{"named": 1, "events": 2, "users": 3}[bad.in]
		}
		return deny(rule, sub(n), "%s", bad.reason)
	}
	// 10.4. in room version 12: creators are not listed.
	if a.v.PrivilegedCreators {
		for _, u := range Creators(a.create) {
			if _, listed := next.Users[u]; listed {
				return deny(rule, ".4", "the creator %s must not be among the users", u)
			}
		}
	}
	// 9.4. Without previous power levels, allow.
	before := a.state(TypePowerLevels, "")
	if before == nil {
		return nil
	}
	current, mine := before.powerLevels(), a.power(a.sender)
	// 9.5. Named levels: neither the old nor the new value of what changes is above the sender.
	for i, name := range powerNames {
		was, had := current.named(i)
		is, has := next.named(i)
		if had == has && (!had || was == is) {
			continue
		}
		if had && was > mine {
			return deny(rule, sub(previous+1)+".1", "%s has not the power %d to change %s", a.sender, was, name)
		}
		if has && is > mine {
			return deny(rule, sub(previous+1)+".2", "%s has not the power to set %s to %d", a.sender, name, is)
		}
	}
	// 9.6. and 9.7. Entries of events and notifications, likewise.
	check := func(name string, was, is map[string]int64) *AuthError {
		for key, old := range was {
			if level, has := is[key]; (!has || level != old) && old > mine {
				return deny(rule, sub(previous+2)+".1", "%s has not the power %d to change %s in %s", a.sender, old, key, name)
			}
		}
		for key, level := range is {
			if old, had := was[key]; (!had || level != old) && level > mine {
				return deny(rule, sub(previous+3)+".1", "%s has not the power to set %s in %s to %d", a.sender, key, name, level)
			}
		}
		return nil
	}
	if err := check("events", current.Events, next.Events); err != nil {
		return err
	}
	if a.v.NotificationsPowers {
		if err := check("notifications", current.Notifications, next.Notifications); err != nil {
			return err
		}
	}
	// 9.8. Users at or above the sender keep their power, but for the sender.
	for u, old := range current.Users {
		if level, has := next.Users[u]; (!has || level != old) && u != a.sender && old >= mine {
			return deny(rule, sub(previous+4)+".1", "%s has not the power to change that of %s", a.sender, u)
		}
	}
	// 9.9. Nobody is given more power than the sender has.
	for u, level := range next.Users {
		if old, had := current.Users[u]; (!had || level != old) && level > mine {
			return deny(rule, sub(previous+5)+".1", "%s has not the power to give %d to %s", a.sender, level, u)
		}
	}
	return nil
}
