package matrix

import "math"

// StateResolution names an algorithm of state resolution.
type StateResolution int

const (
	StateResolutionV1  StateResolution = iota + 1 // room version 1
	StateResolutionV2                             // room versions 2 to 11
	StateResolutionV21                            // room version 12: v2 with the conflicted state subgraph
)

// RoomVersion says by what rules a room lives. There is one value per version, so pointers may be compared. Code asks
// for a flag, never for a version. Spec v1.19 rooms/#feature-matrix
type RoomVersion struct {
	ID string // "1" to "12"

	StateResolution StateResolution

	EventIDInEvent    bool // 1-2: event_id is in the event and names a server; prev and auth events carry hashes
	EventIDStdBase64  bool // 3: the hash in the event ID is in the standard alphabet, with '+' and '/'
	RoomIDIsCreateID  bool // 12: the room ID is the create event's hash; create has no room_id and is in no auth_events
	CanonicalJSON     bool // 6+: JSON that is not canonical (floats, large integers) is refused
	MaxDepth          int64
	KeyValidityPeriod bool // 5+: a signing key must have been valid at origin_server_ts

	CreatorInContent     bool // 1-10: the creator is content.creator; later the sender of the create event
	PrivilegedCreators   bool // 12: creators have infinite power, and there may be additional_creators
	AliasesRule          bool // 1-5: m.room.aliases has an authorization rule and is kept by redaction
	RedactionRule        bool // 1-2: the authorization rules look at redactions
	NotificationsPowers  bool // 6+: the rules look at "notifications" in power levels
	Knocking             bool // 7+: join rule and membership knock
	RestrictedJoins      bool // 8+: join rule restricted
	KnockRestricted      bool // 10+: join rule knock_restricted
	IntegerPowers        bool // 10+: power levels are integers, never strings or floats
	RedactsInContent     bool // 11+: redacts is in the content of the redaction
	RedactionKeepsAllow  bool // 8+: redaction keeps "allow" of join rules
	RedactionKeepsVia    bool // 9+: redaction keeps join_authorised_via_users_server
	RedactionOfVersion11 bool // 11+: redaction drops origin, membership, prev_state; keeps all of create and more
}

const (
	maxInt53 = 1<<53 - 1
	minInt53 = -maxInt53
)

// roomVersions lists every known version from 1 to 12. It is never written to.
var roomVersions = [...]RoomVersion{
	{ID: "1", StateResolution: StateResolutionV1, EventIDInEvent: true, MaxDepth: math.MaxInt64,
		CreatorInContent: true, AliasesRule: true, RedactionRule: true},
	{ID: "2", StateResolution: StateResolutionV2, EventIDInEvent: true, MaxDepth: math.MaxInt64,
		CreatorInContent: true, AliasesRule: true, RedactionRule: true},
	{ID: "3", StateResolution: StateResolutionV2, EventIDStdBase64: true, MaxDepth: math.MaxInt64,
		CreatorInContent: true, AliasesRule: true},
	{ID: "4", StateResolution: StateResolutionV2, MaxDepth: math.MaxInt64,
		CreatorInContent: true, AliasesRule: true},
	{ID: "5", StateResolution: StateResolutionV2, MaxDepth: math.MaxInt64, KeyValidityPeriod: true,
		CreatorInContent: true, AliasesRule: true},
	{ID: "6", StateResolution: StateResolutionV2, MaxDepth: maxInt53, KeyValidityPeriod: true, CanonicalJSON: true,
		CreatorInContent: true, NotificationsPowers: true},
	{ID: "7", StateResolution: StateResolutionV2, MaxDepth: maxInt53, KeyValidityPeriod: true, CanonicalJSON: true,
		CreatorInContent: true, NotificationsPowers: true, Knocking: true},
	{ID: "8", StateResolution: StateResolutionV2, MaxDepth: maxInt53, KeyValidityPeriod: true, CanonicalJSON: true,
		CreatorInContent: true, NotificationsPowers: true, Knocking: true, RestrictedJoins: true,
		RedactionKeepsAllow: true},
	{ID: "9", StateResolution: StateResolutionV2, MaxDepth: maxInt53, KeyValidityPeriod: true, CanonicalJSON: true,
		CreatorInContent: true, NotificationsPowers: true, Knocking: true, RestrictedJoins: true,
		RedactionKeepsAllow: true, RedactionKeepsVia: true},
	{ID: "10", StateResolution: StateResolutionV2, MaxDepth: maxInt53, KeyValidityPeriod: true, CanonicalJSON: true,
		CreatorInContent: true, NotificationsPowers: true, Knocking: true, RestrictedJoins: true,
		RedactionKeepsAllow: true, RedactionKeepsVia: true, KnockRestricted: true, IntegerPowers: true},
	{ID: "11", StateResolution: StateResolutionV2, MaxDepth: maxInt53, KeyValidityPeriod: true, CanonicalJSON: true,
		NotificationsPowers: true, Knocking: true, RestrictedJoins: true,
		RedactionKeepsAllow: true, RedactionKeepsVia: true, KnockRestricted: true, IntegerPowers: true,
		RedactsInContent: true, RedactionOfVersion11: true},
	{ID: "12", StateResolution: StateResolutionV21, MaxDepth: maxInt53, KeyValidityPeriod: true, CanonicalJSON: true,
		NotificationsPowers: true, Knocking: true, RestrictedJoins: true,
		RedactionKeepsAllow: true, RedactionKeepsVia: true, KnockRestricted: true, IntegerPowers: true,
		RedactsInContent: true, RedactionOfVersion11: true,
		RoomIDIsCreateID: true, PrivilegedCreators: true},
}

// LookupRoomVersion finds a version by its name; nil if it is not known.
func LookupRoomVersion(id string) *RoomVersion {
	for i := range roomVersions {
		if roomVersions[i].ID == id {
			return &roomVersions[i]
		}
	}
	return nil
}

// RoomVersions lists the versions that this server supports, oldest first.
func RoomVersions() []*RoomVersion {
	all := make([]*RoomVersion, len(roomVersions))
	for i := range roomVersions {
		all[i] = &roomVersions[i]
	}
	return all
}

func (v *RoomVersion) String() string { return v.ID }
