package matrix

import "encoding/json"

// PowerLevels are the content of m.room.power_levels together with the room's creators. It is immutable.
type PowerLevels struct {
	Ban, Invite, Kick, Redact                 int64
	EventsDefault, StateDefault, UsersDefault int64
	Events, Notifications                     map[string]int64
	Users                                     map[UserID]int64

	creators []UserID // with infinite power: room version 12, or any version while there is no power levels event
}

// CreatorPower is the power of a creator in room version 12: above every integer of canonical JSON.
const CreatorPower = 1<<63 - 1

// PowerLevelsOf gives the power levels of a room from its create and power levels events. Without a power levels
// event (nil) the defaults of the version hold and the creator has 100, or infinite power in room version 12.
// Spec v1.19 client-server-api/#mroompower_levels
func PowerLevelsOf(create, powerLevels *Event) *PowerLevels { return &PowerLevels{} }

// ParsePowerLevels reads the content of a power levels event by the rules of the version: integers, in old versions
// strings and floats also. The error is a *Error that names the wrong key.
func ParsePowerLevels(content json.RawMessage, version *RoomVersion) (*PowerLevels, error) {
	return nil, errNotImplemented
}

// User is the power of a user.
func (p *PowerLevels) User(u UserID) int64 { return 0 }

// Event is the power needed to send an event of a type.
func (p *PowerLevels) Event(typ string, isState bool) int64 { return 0 }

// Notification is the power needed for a kind of notification, such as "room"; 50 if nothing is said.
func (p *PowerLevels) Notification(kind string) int64 { return 50 }

// CanSend reports whether the user's power suffices for an event of the type.
func (p *PowerLevels) CanSend(u UserID, typ string, isState bool) bool {
	return p.User(u) >= p.Event(typ, isState)
}

// CanInvite reports whether the user's power suffices to invite.
func (p *PowerLevels) CanInvite(u UserID) bool { return p.User(u) >= p.Invite }

// CanRedact reports whether the user may redact the events of others.
func (p *PowerLevels) CanRedact(u UserID) bool { return p.User(u) >= p.Redact }

// CanKick reports whether the user may kick the target.
func (p *PowerLevels) CanKick(u, target UserID) bool {
	return p.User(u) >= p.Kick && p.User(u) > p.User(target)
}

// CanBan reports whether the user may ban the target.
func (p *PowerLevels) CanBan(u, target UserID) bool {
	return p.User(u) >= p.Ban && p.User(u) > p.User(target)
}

// Creators are the users with infinite power in room version 12, and the one creator of a room of another version.
func Creators(create *Event) []UserID { return nil }

// MayRedact reports whether a redaction takes effect on its target: from room version 3 on the rules let every
// redaction in, and the server decides when it has both. Spec v1.19 rooms/v11/#handling-redactions
func MayRedact(redaction, target *Event, levels *PowerLevels) bool { return false }
