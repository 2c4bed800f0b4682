package storage

import (
	"errors"
	"sync"
)

// Memo keeps what was read from the database for as long as it is true. It is bounded: when it is full, something gives
// way at random. The zero value is not ready; use NewMemo. Safe for concurrent use.
//
// Whoever changes what is kept calls Drop after the commit, most simply from a [DB.Listen] function; a load that was
// under way meanwhile is then not kept.
type Memo[K comparable, V any] struct {
	max     int
	mu      sync.RWMutex // guards all below
	kept    map[K]V
	flights map[K]*flight
}

// flight is one or more loads of a key under way.
type flight struct {
	loads int
	stale bool
}

// NewMemo makes one that keeps at most max values.
func NewMemo[K comparable, V any](max int) *Memo[K, V] {
	return &Memo[K, V]{max: max, kept: map[K]V{}, flights: map[K]*flight{}}
}

// Kept returns the value if it is in memory.
func (m *Memo[K, V]) Kept(key K) (V, bool) {
	m.mu.RLock()
	v, ok := m.kept[key]
	m.mu.RUnlock()
	return v, ok
}

// Load returns the value from memory, or else from load, and then keeps it. An error is not kept.
func (m *Memo[K, V]) Load(key K, load func() (V, error)) (V, error) {
	if v, ok := m.Kept(key); ok {
		return v, nil
	}
	m.mu.Lock()
	f := m.flights[key]
	if f == nil {
		f = &flight{}
		m.flights[key] = f
	}
	f.loads++
	m.mu.Unlock()

	var v V
	err := errUnfinished
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if f.loads--; f.loads == 0 && m.flights[key] == f {
			delete(m.flights, key)
		}
		if err != nil || f.stale {
			return
		}
		if len(m.kept) >= m.max {
			for other := range m.kept {
				delete(m.kept, other)
				break
			}
		}
		m.kept[key] = v
	}()
	v, err = load()
	return v, err
}

// Drop forgets one key.
func (m *Memo[K, V]) Drop(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.kept, key)
	if f := m.flights[key]; f != nil {
		f.stale = true
		delete(m.flights, key)
	}
}

// DropWhere forgets all values of which is(key, value) is true, and all loads under way.
func (m *Memo[K, V]) DropWhere(is func(K, V) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, v := range m.kept {
		if is(k, v) {
			delete(m.kept, k)
		}
	}
	for k, f := range m.flights {
		f.stale = true
		delete(m.flights, k)
	}
}

// Clear forgets everything.
func (m *Memo[K, V]) Clear() { m.DropWhere(func(K, V) bool { return true }) }

// errUnfinished stands for the outcome of a load that panicked.
var errUnfinished = errors.New("load did not finish")

// DropKept forgets all kept values of which is(key, value) is true, and lets loads under way be.
func (m *Memo[K, V]) DropKept(is func(K, V) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, v := range m.kept {
		if is(k, v) {
			delete(m.kept, k)
		}
	}
}
