package storage

import (
	"parley.im/parley/server/matrix"
)

// EventFlags say how an event stands in its room.
type EventFlags int64

// The flags of an event.
const (
	// Rejected: an authorization rule refused it. It is kept so that we need not ask for it again, and is shown to nobody.
	Rejected EventFlags = 1 << iota
	// SoftFailed: allowed by the state before it but not by the current state. It is in the graph, but not in the timeline.
	SoftFailed
	// Outlier: we know it, but not the state before it: it was sent to us as part of a state or an auth chain.
	Outlier
)

// Event is a stored event.
type Event struct {
	*matrix.Event
	// Num is the event's number, given by [DB.EventNums]. State trees hold it.
	Num int64
	// Pos is the stream position at which the event entered the timeline, or 0: outliers, backfilled, rejected and
	// soft-failed events have none.
	Pos int64
	// RoomNum is the number of the room's row.
	RoomNum int64
	Flags   EventFlags
	// Before is the state before the event; zero for outliers and for the create event.
	Before StateRoot
	// RedactedBy is the redaction that was applied; the event itself is in its redacted form then.
	RedactedBy matrix.EventID
	// Device and TxnID are set on events that a client of this server sent with a transaction ID.
	Device matrix.DeviceID
	TxnID  string
}

// Hidden reports whether the event must not be shown to clients as part of the room's history: it is rejected, soft-failed or
// an outlier.
func (e *Event) Hidden() bool { return e.Flags&(Rejected|SoftFailed|Outlier) != 0 }
