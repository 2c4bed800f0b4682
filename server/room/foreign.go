package room

import (
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// foreign is what a Service keeps in memory about other servers. The zero value is ready for use.
type foreign struct {
	hierarchies memo[hierarchyKey, HierarchyResponse]
	summaries   memo[matrix.RoomID, summaryEntry]
	inbound     inboundQueues
	partial     partialQueues
	resume      sync.Once // of what waited when the server was stopped
	joins       keyedLocks
	histories   keyedLocks
	noHistory   memo[matrix.RoomID, struct{}] // rooms whose history nobody gave lately
	policies    memo[policyKey, policyVerdict]
	noPolicy    memo[matrix.ServerName, struct{}] // policy servers that did not answer lately
}

type hierarchyKey struct {
	room          matrix.RoomID
	suggestedOnly bool
}

// summaryEntry is what was made of one state of a room.
type summaryEntry struct {
	root storage.StateRoot // Members is zero: they do not count
	sum  RoomSummary
}

// memo remembers up to maxMemo answers for a while. The zero value is ready for use; it is safe for concurrent use.
type memo[K comparable, V any] struct {
	mu    sync.Mutex
	items map[K]memoItem[V]
}

type memoItem[V any] struct {
	value   V
	expires time.Time // zero: never
}

const maxMemo = 5000

func (m *memo[K, V]) get(key K, now time.Time) (v V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	item, ok := m.items[key]
	if ok && !item.expires.IsZero() && now.After(item.expires) {
		delete(m.items, key)
		return v, false
	}
	return item.value, ok
}

// put remembers a value until expires, forever if that is zero. When the memo is full, what map iteration finds first has to go.
func (m *memo[K, V]) put(key K, value V, expires time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.items == nil {
		m.items = map[K]memoItem[V]{}
	}
	for k := range m.items {
		if len(m.items) < maxMemo {
			break
		}
		delete(m.items, k)
	}
	m.items[key] = memoItem[V]{value, expires}
}
