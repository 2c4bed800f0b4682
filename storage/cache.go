package storage

import "sync"

// cache keeps what was used lately, up to a number of bytes. It has two generations: when the young one holds half of
// the budget it becomes the old one, and what the old one held and nobody asked for is gone.
type cache[K comparable, V any] struct {
	mu         sync.Mutex
	young, old map[K]cached[V]
	used, max  int // bytes of the young generation; of both
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

// put adds a value of about size bytes, or puts it in place of an older one.
func (c *cache[K, V]) put(key K, value V, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(key, cached[V]{value, size + 64})
}

func (c *cache[K, V]) drop(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
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
