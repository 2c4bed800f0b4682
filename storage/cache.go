package storage

import "sync"

// cache keeps what was used lately, up to a number of bytes. It has two generations: when the young one holds half of
// the budget it becomes the old one, and what the old one held and nobody asked for is gone.
type cache[K comparable, V any] struct {
	mu         sync.Mutex
	young, old map[K]cached[V]
	used, max  int // bytes of the young generation; of both
	epoch      int64
}

type cached[V any] struct {
	value V
	size  int
}

func newCache[K comparable, V any](maxBytes int) *cache[K, V] {
	return &cache[K, V]{young: map[K]cached[V]{}, max: maxBytes}
}

func (c *cache[K, V]) get(key K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.young[key]
	if ok {
		return v.value, true
	}
	if v, ok = c.old[key]; ok {
		c.add(key, v)
	}
	return v.value, ok
}

// now is to be asked before a read from the database, for putAt after it.
func (c *cache[K, V]) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

// putAt adds what was read from the database, unless something was replaced since: it might be the old value of that.
func (c *cache[K, V]) putAt(epoch int64, key K, value V, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch == epoch {
		c.add(key, cached[V]{value, size + 64})
	}
}

// put adds a new value of about size bytes, which never had another one before.
func (c *cache[K, V]) put(key K, value V, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(key, cached[V]{value, size + 64})
}

// replace puts a value in place of an older one.
func (c *cache[K, V]) replace(key K, value V, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	delete(c.old, key)
	c.add(key, cached[V]{value, size + 64})
}

// drop forgets what has been deleted from the database.
func (c *cache[K, V]) drop(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.used -= c.young[key].size
	delete(c.young, key)
	delete(c.old, key)
}

func (c *cache[K, V]) add(key K, v cached[V]) {
	c.used += v.size - c.young[key].size
	c.young[key] = v
	if c.used > c.max/2 {
		c.old, c.young, c.used = c.young, map[K]cached[V]{}, 0
	}
}

// clear forgets everything, because it may have changed elsewhere.
func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.young, c.old, c.used = map[K]cached[V]{}, nil, 0
}
