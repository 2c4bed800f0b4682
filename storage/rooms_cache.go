package storage

import (
	"strings"
	"sync"

	"parley.im/parley/server/matrix"
)

// What the caches may hold, in bytes.
const (
	nodeCacheBytes  = 8 << 20
	eventCacheBytes = 16 << 20
)

// roomCaches are what the storage of rooms keeps in memory.
type roomCaches struct {
	nodes    *cache[nodeHash, *treeNode]
	events   *cache[int64, *Event]         // by number
	eventIDs *cache[matrix.EventID, int64] // to their numbers
	rooms    *cache[int64, *roomName]      // by number
	roomIDs  *cache[matrix.RoomID, int64]  // to their numbers
	nums     struct {
		sync.Mutex
		next, end int64 // event numbers reserved for this process
	}
}

// roomName is what never changes about a room.
type roomName struct {
	id      matrix.RoomID
	version *matrix.RoomVersion
}

func newRoomCaches() roomCaches {
	return roomCaches{
		nodes:    newCache[nodeHash, *treeNode](nodeCacheBytes),
		events:   newCache[int64, *Event](eventCacheBytes),
		eventIDs: newCache[matrix.EventID, int64](4 << 20),
		rooms:    newCache[int64, *roomName](2 << 20),
		roomIDs:  newCache[matrix.RoomID, int64](2 << 20),
	}
}

// placeholders is "(?,?),(?,?)" for rows rows of columns columns.
func placeholders(rows, columns int) string {
	row := "(" + strings.TrimSuffix(strings.Repeat("?,", columns), ",") + ")"
	return strings.TrimSuffix(strings.Repeat(row+",", rows), ",")
}
