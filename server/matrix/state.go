package matrix

// Event types that the authorization rules, redaction or the server itself know.
const (
	TypeCreate            = "m.room.create"
	TypeMember            = "m.room.member"
	TypeJoinRules         = "m.room.join_rules"
	TypePowerLevels       = "m.room.power_levels"
	TypeThirdPartyInvite  = "m.room.third_party_invite"
	TypeRedaction         = "m.room.redaction"
	TypeAliases           = "m.room.aliases"
	TypeHistoryVisibility = "m.room.history_visibility"
	TypeGuestAccess       = "m.room.guest_access"
	TypeCanonicalAlias    = "m.room.canonical_alias"
	TypeName              = "m.room.name"
	TypeTopic             = "m.room.topic"
	TypeAvatar            = "m.room.avatar"
	TypeEncryption        = "m.room.encryption"
	TypeEncrypted         = "m.room.encrypted"
	TypeMessage           = "m.room.message"
	TypeTombstone         = "m.room.tombstone"
	TypeServerACL         = "m.room.server_acl"
	TypePinnedEvents      = "m.room.pinned_events"
	TypeSpaceChild        = "m.space.child"
	TypeSpaceParent       = "m.space.parent"
)

// Memberships.
const (
	Join   = "join"
	Invite = "invite"
	Leave  = "leave"
	Ban    = "ban"
	Knock  = "knock"
)

// Join rules. Spec v1.19 client-server-api/#mroomjoin_rules
const (
	JoinRulePublic          = "public"
	JoinRuleInvite          = "invite"
	JoinRuleKnock           = "knock"
	JoinRuleRestricted      = "restricted"
	JoinRuleKnockRestricted = "knock_restricted"
	JoinRulePrivate         = "private"
)

// StateTuple is the key of an entry of room state: the type and the state key of a state event.
type StateTuple struct {
	Type, StateKey string
}

// StateMap is room state, or a part of it.
type StateMap map[StateTuple]EventID

// StateLookup finds an event of a room state, nil if there is none. It must not block: load what
// [AuthKeys] asks for first.
type StateLookup func(typ, stateKey string) *Event

// Lookup makes a [StateLookup] of a list of state events; of two with the same tuple the later one counts.
func Lookup(events []*Event) StateLookup {
	m := make(map[StateTuple]*Event, len(events))
	for _, e := range events {
		if key, ok := e.StateKey(); ok {
			m[StateTuple{e.Type(), key}] = e
		}
	}
	return func(typ, stateKey string) *Event { return m[StateTuple{typ, stateKey}] }
}
