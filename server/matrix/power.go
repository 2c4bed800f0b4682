package matrix

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
)

// PowerLevels are the content of m.room.power_levels together with the room's creators. It is immutable.
type PowerLevels struct {
	Ban, Invite, Kick, Redact                 int64
	EventsDefault, StateDefault, UsersDefault int64
	Events, Notifications                     map[string]int64
	Users                                     map[UserID]int64

	stated   uint8    // bit i: the content has powerNames[i]
	creators []UserID // with infinite power, from room version 12 on
}

// powerNames are the levels by name, in the order of PowerLevels.named.
var powerNames = [...]string{"users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"}

// CreatorPower is the power of a creator in room version 12: above every integer of canonical JSON.
const CreatorPower = math.MaxInt64

// named gives the level of powerNames[i]; ok is false if the content does not have it.
func (p *PowerLevels) named(i int) (level int64, ok bool) {
	return *p.field(i), p.stated&(1<<i) != 0
}

func (p *PowerLevels) field(i int) *int64 {
	return [...]*int64{&p.UsersDefault, &p.EventsDefault, &p.StateDefault, &p.Ban, &p.Redact, &p.Kick, &p.Invite}[i]
}

func defaultPowerLevels() *PowerLevels {
	return &PowerLevels{Ban: 50, Kick: 50, Redact: 50, StateDefault: 50}
}

// PowerLevelsOf gives the power levels of a room from its create and power levels events. Without a power levels
// event (nil) the defaults hold and the creator has 100, or infinite power in room version 12.
// Spec v1.19 client-server-api/#mroompower_levels
func PowerLevelsOf(create, powerLevels *Event) *PowerLevels {
	if powerLevels == nil {
		p := defaultPowerLevels()
		if create != nil {
			p.setCreators(create)
		}
		return p
	}
	p := *powerLevels.powerLevels()
	if create != nil && create.version.PrivilegedCreators {
		p.setCreators(create)
	}
	return &p
}

func (p *PowerLevels) setCreators(create *Event) {
	if create.version.PrivilegedCreators {
		p.creators = Creators(create)
		return
	}
	p.Users = map[UserID]int64{}
	for _, u := range Creators(create) {
		p.Users[u] = 100
	}
}

// powerLevels reads the content of a power levels event, once; what is malformed counts as not there.
func (e *Event) powerLevels() *PowerLevels {
	if p := e.powers.Load(); p != nil {
		return p
	}
	p, _ := parsePowerLevels(e.content, e.version)
	e.powers.Store(p)
	return p
}

// ParsePowerLevels reads the content of a power levels event by the rules of the version: integers, in old versions
// strings and floats also. The error is a *Error that names the wrong key.
func ParsePowerLevels(content json.RawMessage, version *RoomVersion) (*PowerLevels, error) {
	canonical, err := canonicalJSON(nil, content, !version.CanonicalJSON)
	if err != nil {
		return nil, err
	}
	p, bad := parsePowerLevels(canonical, version)
	if bad != nil {
		return nil, BadJSON("power levels: %s", bad.reason)
	}
	return p, nil
}

// badPower is what is wrong in the content of a power levels event.
type badPower struct {
	in     string // "named", "events" or "users": rules 10.1, 10.2 and 10.3 of room version 12
	reason string
}

// parsePowerLevels reads canonical content; it returns what can be read, and the first thing that cannot.
func parsePowerLevels(content []byte, v *RoomVersion) (*PowerLevels, *badPower) {
	p := defaultPowerLevels()
	var bad *badPower
	fail := func(in, reason string) {
		if bad == nil {
			bad = &badPower{in, reason}
		}
	}
	levels := func(in, name string, object []byte, put func(key string, level int64) bool) {
		if !isObject(object) {
			fail(in, name+" is not an object")
			return
		}
		members(object, func(k, value []byte) bool {
			key := unsafeString(unquoteRaw(k))
			if level, ok := powerValue(value, v); !ok {
				fail(in, "the level of "+strconv.Quote(key)+" in "+name+" is not an integer")
			} else if !put(key, level) {
				fail(in, strconv.Quote(key)+" in "+name+" is not a user ID")
			}
			return true
		})
	}
	members(content, func(k, value []byte) bool {
		switch key := string(k); key {
		case "events", "notifications":
			m := map[string]int64{}
			levels("events", key, value, func(key string, level int64) bool { m[key] = level; return true })
			if key == "events" {
				p.Events = m
			} else {
				p.Notifications = m
			}
		case "users":
			p.Users = map[UserID]int64{}
			levels("users", key, value, func(key string, level int64) bool {
				p.Users[UserID(key)] = level
				_, err := ParseUserID(key)
				return err == nil
			})
		default:
			i := slices.Index(powerNames[:], key)
			if i < 0 || !v.IntegerPowers && string(value) == "null" {
				return true
			}
			level, ok := powerValue(value, v)
			if !ok {
				fail("named", key+" is not an integer")
				return true
			}
			*p.field(i) = level
			p.stated |= 1 << i
		}
		return true
	})
	return p, bad
}

// powerValue reads one level: an integer, and before room version 10 also an integer in a string or a float that is cut
// off at the decimal point. What does not fit into 63 bits becomes the largest or smallest level.
// Spec v1.19 rooms/v1/#deprecated-event-content-schemas
func powerValue(value []byte, v *RoomVersion) (int64, bool) {
	if level, ok := intValue(value); ok {
		return level, true
	}
	if v.IntegerPowers || len(value) == 0 {
		return 0, false
	}
	if text, ok := stringValue(value); ok {
		text = strings.Trim(text, " \t\n\r\f\v")
		digits := strings.TrimLeft(text, "+-")
		if digits == "" || len(text)-len(digits) > 1 || !allDigits(digits) {
			return 0, false
		}
		level, _ := strconv.ParseInt(text, 10, 64) // out of range gives the limit, which is what we want
		return min(max(level, -CreatorPower+1), CreatorPower-1), true
	}
	f, err := strconv.ParseFloat(string(value), 64)
	switch {
	case err != nil || value[0] != '-' && (value[0] < '0' || value[0] > '9'):
		return 0, false
	case f >= CreatorPower:
		return CreatorPower - 1, true
	case f <= -CreatorPower:
		return -CreatorPower + 1, true
	}
	return int64(f), true
}

// User is the power of a user.
func (p *PowerLevels) User(u UserID) int64 {
	if slices.Contains(p.creators, u) {
		return CreatorPower
	}
	if level, ok := p.Users[u]; ok {
		return level
	}
	return p.UsersDefault
}

// Event is the power needed to send an event of a type.
func (p *PowerLevels) Event(typ string, isState bool) int64 {
	if level, ok := p.Events[typ]; ok {
		return level
	}
	if isState {
		return p.StateDefault
	}
	return p.EventsDefault
}

// Notification is the power needed for a kind of notification, such as "room"; 50 if nothing is said.
func (p *PowerLevels) Notification(kind string) int64 {
	if level, ok := p.Notifications[kind]; ok {
		return level
	}
	return 50
}

// CanSend reports whether the user's power suffices for an event of the type.
func (p *PowerLevels) CanSend(u UserID, typ string, isState bool) bool {
	return p.User(u) >= p.Event(typ, isState)
}

// CanInvite reports whether the user's power suffices to invite.
func (p *PowerLevels) CanInvite(u UserID) bool { return p.User(u) >= p.Invite }

// CanRedact reports whether the user's power suffices to redact the events of others.
func (p *PowerLevels) CanRedact(u UserID) bool { return p.User(u) >= p.Redact }

// CanKick reports whether the user's power suffices to kick the target.
func (p *PowerLevels) CanKick(u, target UserID) bool {
	return p.User(u) >= p.Kick && p.User(u) > p.User(target)
}

// CanBan reports whether the user's power suffices to ban the target.
func (p *PowerLevels) CanBan(u, target UserID) bool {
	return p.User(u) >= p.Ban && p.User(u) > p.User(target)
}

// Creators are the users with infinite power in room version 12, and the one creator of a room of another version.
// Spec v1.19 rooms/v12/#authorisation-rules
func Creators(create *Event) []UserID {
	if create.version.CreatorInContent {
		creator := create.ContentString("creator")
		if creator == "" {
			return nil
		}
		return []UserID{UserID(creator)}
	}
	creators := []UserID{create.sender}
	if create.version.PrivilegedCreators {
		elements(create.ContentMember("additional_creators"), func(value []byte) bool {
			if u, ok := stringValue(value); ok {
				creators = append(creators, UserID(u))
			}
			return true
		})
	}
	return creators
}

// MayRedact reports whether a redaction takes effect on its target, given the power levels at the redaction: from room
// version 3 on the authorization rules let every redaction in, and the server decides when it has both events.
// Spec v1.19 rooms/v11/#handling-redactions
func MayRedact(redaction, target *Event, levels *PowerLevels) bool {
	if redaction.redacts != target.id || redaction.roomID != target.roomID {
		return false
	}
	if redaction.version.RedactionRule {
		return levels.CanRedact(redaction.sender) || redaction.id.Server() == target.id.Server()
	}
	return levels.CanRedact(redaction.sender) || redaction.sender.Server() == target.sender.Server()
}
