package storage

import (
	"slices"

	"parley.im/parley/server/matrix"
)

// Commit is what the bell tells after each commit that rang it.
type Commit struct {
	Position int64 // the stream position after the commit
	Changes  []Change
}

// Change is one thing that a commit changed, in as much detail as spares a listener from asking the database.
type Change struct {
	// Events entered rooms, in stream order.
	Events []CommittedEvent
	// Wakes say who has something new that is not an event.
	Wakes []Wake
	// Foreign is set when another process wrote: nothing is known but that the position has moved, so a listener must
	// look in the database.
	Foreign bool
	// Purged are rooms of which events have gone. What is kept in memory of their past must be read anew.
	Purged []matrix.RoomID
}

// CommittedEvent is an event that entered a room's timeline, encoded once for everyone who waits for it.
type CommittedEvent struct {
	Pos   int64 // stream position
	Num   int64 // event number
	Room  matrix.RoomID
	Event *matrix.Event // carries the bytes for servers: Event.JSON()
	// Client is the event in the client format with room_id left out, as /sync has it, without unsigned.age and
	// transaction_id, which differ from reader to reader.
	Client []byte
	// TxnID and Device say which device sent it with which transaction ID; empty for events from other servers.
	TxnID  string
	Device matrix.DeviceID
	// Straight says that the state before it is the one that the room had then: it is of no other branch.
	Straight bool
	// Stands says of a member event that it is what the room's state has for the member after it. Where branches of the graph meet, another one may win.
	Stands bool
	// Handed is set on the event by which this server came into a room, with the help of another, which passes it on.
	Handed bool
	// OnlyHere says that no other server has anybody in the room, and that none had whom the event put out.
	OnlyHere bool
}

// Topic is a kind of news that is not an event.
type Topic uint8

// The topics of [Wake].
const (
	TopicAccountData Topic = iota + 1
	TopicRoomAccountData
	TopicReceipt
	TopicToDevice
	TopicDeviceList
	TopicDeviceKeys // one-time key counts
	TopicProfile
	TopicMembership // a membership that no event of the commit's timeline tells: of a room outside, or by a merge of branches
	TopicOutbox     // rows for another server: Server is set
	TopicPush
	TopicPlayedReceipt // somebody has played a voice message that User sent
	TopicTranscript    // what is said in a voice message in Room is known now, or has been changed
	TopicPartial       // a room was entered with members left out, or they have been fetched: Room is set
)

// Wake says for whom there is something new. Fields that do not apply are empty.
type Wake struct {
	Topic  Topic
	Pos    int64
	User   matrix.UserID
	Device matrix.DeviceID
	Room   matrix.RoomID
	Server matrix.ServerName
	Reader matrix.UserID // of TopicDeviceList: the only one who can see the change; empty for everyone
}

// Listen has fn called after each commit that rang the bell, in commit order, until the returned function is called. fn
// runs on the writer's goroutine while all writers wait: it must be quick, and it must not write.
func (db *DB) Listen(fn func(Commit)) (stop func()) {
	l := &db.listeners
	l.Lock()
	defer l.Unlock()
	added := &fn
	l.all = append(l.all, added)
	return func() {
		l.Lock()
		defer l.Unlock()
		l.all = slices.DeleteFunc(l.all, func(fn *func(Commit)) bool { return fn == added })
	}
}

func (db *DB) ring(c Commit) {
	l := &db.listeners
	l.Lock()
	defer l.Unlock()
	for _, fn := range l.all { // who began to listen first hears first: lower floors before higher ones
		(*fn)(c)
	}
}
