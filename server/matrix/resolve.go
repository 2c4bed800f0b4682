package matrix

import (
	"errors"
	"iter"
)

// Resolution is a question to state resolution: several states of a room, of which only what they do not agree on is
// listed.
type Resolution struct {
	Version *RoomVersion

	// Sets holds, for each state, its entries for the conflicted tuples: those that some state has and not all states have with
	// the same event. A state without a tuple lacks it here.
	Sets []StateMap

	// Unconflicted finds the event that all states have for a tuple, "" if there is none.
	Unconflicted func(StateTuple) EventID

	// UnconflictedEvents yields the events of the unconflicted state. They are asked for only when the auth difference cannot
	// be told without them, once.
	UnconflictedEvents iter.Seq[EventID]

	// Load finds events; what is not known is left out. It is called with what a step of the walk needs, in few large
	// batches, never twice for the same event.
	Load func(ids []EventID) ([]*Event, error)

	// Rejected reports whether an event was rejected; nil if none was.
	Rejected func(EventID) bool
}

// Resolve returns the resolved entries for the conflicted tuples; a tuple without an entry has none in the resolved
// state. Errors are those of Load. Spec v1.19 rooms/v11/#state-resolution, rooms/v12/#state-resolution
func Resolve(r *Resolution) (StateMap, error) { return nil, errors.New("matrix: not implemented yet") }

// ResolveStates resolves whole states, finding itself what is conflicted, and returns the whole resolved state.
func ResolveStates(version *RoomVersion, states []StateMap, load func([]EventID) ([]*Event, error), rejected func(EventID) bool) (StateMap, error) {
	return nil, errors.New("matrix: not implemented yet")
}
