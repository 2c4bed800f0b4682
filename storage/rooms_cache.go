package storage

import (
	"sync"

	"parley.im/parley/server/matrix"
)

// What the caches may hold, in bytes.
const (
	nodeCacheBytes    = 8 << 20
	eventCacheBytes   = 16 << 20
	nameCacheBytes    = 4 << 20
	segmentCacheBytes = 4 << 20
)

// roomCaches are what the storage of rooms keeps in memory.
type roomCaches struct {
	nodes     *cache[nodeHash, *treeNode]
	events    *cache[int64, *Event]         // by number
	eventIDs  *cache[matrix.EventID, int64] // to their numbers
	roomNames *cache[int64, *roomName]      // by number
	segments  *cache[int64, *segmentHead]   // of the index of words
	nums      *eventNums
}

type eventNums struct {
	sync.Mutex
	next, end int64 // those reserved for this process
}

// roomName is what never changes about a room.
type roomName struct {
	id      matrix.RoomID
	version *matrix.RoomVersion
}

func newRoomCaches() roomCaches {
	return roomCaches{
		nodes:     newCache[nodeHash, *treeNode](nodeCacheBytes),
		events:    newCache[int64, *Event](eventCacheBytes),
		eventIDs:  newCache[matrix.EventID, int64](nameCacheBytes),
		roomNames: newCache[int64, *roomName](nameCacheBytes),
		segments:  newCache[int64, *segmentHead](segmentCacheBytes),
		nums:      &eventNums{},
	}
}

// ForgetRooms empties the caches of rooms, as a restart does; for measurements.
func (db *DB) ForgetRooms() {
	db.nodes.clear()
	db.events.clear()
	db.eventIDs.clear()
	db.roomNames.clear()
}
