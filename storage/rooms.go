package storage

import (
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// RoomFlags say how a room stands.
type RoomFlags int64

// The flags of a room.
const (
	// PartialState: we joined with the members left out, and they are still being fetched.
	PartialState RoomFlags = 1 << iota
	// HasMissing: some prev_events of its events are not here, so there is history to backfill.
	HasMissing
)

// Room is a room as it is stored.
type Room struct {
	Num     int64
	ID      matrix.RoomID
	Version *matrix.RoomVersion
	// Seq is raised by each append; [Tx.AppendRooms] compares and swaps it.
	Seq int64
	// Pos is the stream position of the newest event of the timeline; 0 if we only know of the room.
	Pos int64
	// Tip are the numbers of the forward extremities, empty if we only know of the room.
	Tip   []int64
	Root  StateRoot // current state
	Depth int64     // the highest in the tip
	Flags RoomFlags
}

// Membership is how a user stands to a room.
type Membership struct {
	Room       matrix.RoomID
	RoomNum    int64
	User       matrix.UserID
	Membership string // matrix.Join and so on
	// Num is the number of the member event.
	Num int64
	// Pos is the stream position at which the membership became so; a change of name or avatar does not count as one.
	Pos       int64
	Forgotten bool
	// Stripped is the stripped state that came with an invite or a knock into a room that this server is not in, a
	// JSON array; else nil.
	Stripped json.RawMessage
}
