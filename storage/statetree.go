package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"
)

// State after every event is kept as a persistent tree. The keys are hashes of (type, state_key), the values are event
// numbers. A node with at most leafSize entries below it is a leaf that holds them all, any other branches 16 ways by the
// next four bits of the key: so the shape, and with it the root, follows from the entries alone, and equal states have equal
// roots. Nodes never change; a change writes the path from the root to one leaf, and two trees share all else. Member events
// have a tree of their own, so that the rest of the state of a large room is read without going past them.

// leafSize is the most entries in a leaf.
const leafSize = 32

type (
	stateKey [16]byte // first half of SHA-256 of type, 0, state_key
	nodeHash [16]byte // first half of SHA-256 of the encoded node; zero for the empty tree
)

// StateRoot names a state of a room: the roots of its two trees. The zero value is the empty state.
type StateRoot struct{ Others, Members nodeHash }

// Bytes is the root as it is stored; [ParseStateRoot] is the way back.
func (r StateRoot) Bytes() []byte {
	return append(append(make([]byte, 0, 32), r.Others[:]...), r.Members[:]...)
}

// IsZero reports whether this is the empty state, that before the create event.
func (r StateRoot) IsZero() bool { return r == StateRoot{} }

// ParseStateRoot reads what Bytes wrote; nil gives the empty state.
func ParseStateRoot(b []byte) (r StateRoot, err error) {
	switch len(b) {
	case 0:
	case 32:
		copy(r.Others[:], b)
		copy(r.Members[:], b[16:])
	default:
		err = fmt.Errorf("state root of %d bytes", len(b))
	}
	return r, err
}

// StateEntry is one entry of a state, or a change to it: the event Num becomes the state of (Type, Key). In a change,
// Num 0 takes the entry away.
type StateEntry struct {
	Type, Key string
	Num       int64
}

// StateDiff is one key in which two states differ; 0 stands for no event.
type StateDiff struct{ A, B int64 }

const memberType = "m.room.member"

func hashStateKey(typ, key string) (k stateKey) {
	buf := make([]byte, 0, 128)
	buf = append(append(append(buf, typ...), 0), key...)
	sum := sha256.Sum256(buf)
	copy(k[:], sum[:])
	return k
}

func (k stateKey) nibble(depth int) int {
	if depth&1 == 0 {
		return int(k[depth/2] >> 4)
	}
	return int(k[depth/2] & 15)
}

type treeEntry struct {
	key stateKey
	num int64
}

// treeRef points to a subtree; the zero value is the empty one.
type treeRef struct {
	hash  nodeHash
	count int
}

// treeNode is a leaf, with entries sorted by key, or a branch.
type treeNode struct {
	entries  []treeEntry
	children *[16]treeRef
	// newest is the highest event number below, 0 as long as nobody has asked. It is not stored.
	newest atomic.Int64
}

func (n *treeNode) count() int {
	if n.children == nil {
		return len(n.entries)
	}
	total := 0
	for i := range n.children {
		total += n.children[i].count
	}
	return total
}

func (n *treeNode) find(key stateKey) (int64, bool) {
	i, ok := slices.BinarySearchFunc(n.entries, key, func(e treeEntry, k stateKey) int { return bytes.Compare(e.key[:], k[:]) })
	if !ok {
		return 0, false
	}
	return n.entries[i].num, true
}

// encode: a leaf is 0 and its entries (key, varint); a branch is 1, a bitmap of 16 bits and its children (hash, varint).
func (n *treeNode) encode() []byte {
	if n.children == nil {
		b := make([]byte, 1, 1+len(n.entries)*21)
		for _, e := range n.entries {
			b = binary.AppendUvarint(append(b, e.key[:]...), uint64(e.num))
		}
		return b
	}
	b := append(make([]byte, 0, 3+16*19), 1, 0, 0)
	var bitmap uint16
	for i, c := range n.children {
		if c.count > 0 {
			bitmap |= 1 << i
			b = binary.AppendUvarint(append(b, c.hash[:]...), uint64(c.count))
		}
	}
	binary.LittleEndian.PutUint16(b[1:], bitmap)
	return b
}

var errBadNode = errors.New("damaged node of a state tree")

func decodeNode(b []byte) (*treeNode, error) {
	if len(b) == 0 {
		return nil, errBadNode
	}
	kind, b := b[0], b[1:]
	n := &treeNode{}
	next := func(hash []byte) (uint64, bool) {
		if len(b) < 17 {
			return 0, false
		}
		copy(hash, b)
		v, size := binary.Uvarint(b[16:])
		if size <= 0 {
			return 0, false
		}
		b = b[16+size:]
		return v, true
	}
	switch {
	case kind == 0:
		n.entries = make([]treeEntry, 0, len(b)/18)
		for len(b) > 0 {
			var e treeEntry
			v, ok := next(e.key[:])
			if !ok {
				return nil, errBadNode
			}
			e.num = int64(v)
			n.entries = append(n.entries, e)
		}
	case kind == 1 && len(b) >= 2:
		bitmap := binary.LittleEndian.Uint16(b)
		b = b[2:]
		n.children = new([16]treeRef)
		for ; bitmap != 0; bitmap &= bitmap - 1 {
			c := &n.children[bits.TrailingZeros16(bitmap)]
			v, ok := next(c.hash[:])
			if !ok {
				return nil, errBadNode
			}
			c.count = int(v)
		}
	default:
		return nil, errBadNode
	}
	return n, nil
}

// StateNodes are nodes that are not stored yet, made by [DB.UpdateState]. They must be written in the transaction that
// writes the first row that names their root. The zero value is ready for use; it is not safe for several goroutines.
type StateNodes struct {
	fresh map[nodeHash]*treeNode
	order []nodeHash
	bytes [][]byte
}

func (s *StateNodes) add(n *treeNode) nodeHash {
	blob := n.encode()
	sum := sha256.Sum256(blob)
	h := nodeHash(sum[:16])
	if _, ok := s.fresh[h]; !ok {
		if s.fresh == nil {
			s.fresh = map[nodeHash]*treeNode{}
		}
		s.fresh[h] = n
		s.order = append(s.order, h)
		s.bytes = append(s.bytes, blob)
	}
	return h
}

// Len is the number of nodes to be written.
func (s *StateNodes) Len() int { return len(s.order) }

// treeEdit applies changes to one tree.
type treeEdit struct {
	load  func(nodeHash) (*treeNode, error)
	fresh *StateNodes
}

func (e *treeEdit) root(h nodeHash) (treeRef, error) {
	if h == (nodeHash{}) {
		return treeRef{}, nil
	}
	n, err := e.load(h)
	if err != nil {
		return treeRef{}, err
	}
	return treeRef{h, n.count()}, nil
}

// apply returns the subtree with the changes, which are sorted by key and have distinct keys.
func (e *treeEdit) apply(ref treeRef, depth int, changes []treeEntry) (treeRef, error) {
	switch {
	case len(changes) == 0:
		return ref, nil
	case ref.count == 0:
		return e.build(mergeEntries(nil, changes), depth), nil
	}
	n, err := e.load(ref.hash)
	if err != nil {
		return ref, err
	}
	if n.children == nil {
		merged := mergeEntries(n.entries, changes)
		if slices.Equal(merged, n.entries) {
			return ref, nil
		}
		return e.build(merged, depth), nil
	}
	children := *n.children
	total := 0
	for i := range children {
		mine := 0
		for mine < len(changes) && changes[mine].key.nibble(depth) == i {
			mine++
		}
		if children[i], err = e.apply(children[i], depth+1, changes[:mine]); err != nil {
			return ref, err
		}
		changes = changes[mine:]
		total += children[i].count
	}
	if children == *n.children {
		return ref, nil
	}
	if total > leafSize {
		return treeRef{e.fresh.add(&treeNode{children: &children}), total}, nil
	}
	var entries []treeEntry
	for _, c := range children {
		if c.count > 0 {
			leaf, err := e.load(c.hash)
			if err != nil {
				return ref, err
			}
			entries = append(entries, leaf.entries...)
		}
	}
	return e.build(entries, depth), nil
}

// build makes the subtree of entries, which are sorted.
func (e *treeEdit) build(entries []treeEntry, depth int) treeRef {
	if len(entries) == 0 {
		return treeRef{}
	}
	if len(entries) <= leafSize {
		return treeRef{e.fresh.add(&treeNode{entries: entries}), len(entries)}
	}
	n := &treeNode{children: new([16]treeRef)}
	total := len(entries)
	for i := range n.children {
		mine := 0
		for mine < len(entries) && entries[mine].key.nibble(depth) == i {
			mine++
		}
		n.children[i] = e.build(entries[:mine], depth+1)
		entries = entries[mine:]
	}
	return treeRef{e.fresh.add(n), total}
}

// mergeEntries applies sorted changes to sorted entries.
func mergeEntries(entries, changes []treeEntry) []treeEntry {
	merged := make([]treeEntry, 0, len(entries)+len(changes))
	for len(entries) > 0 || len(changes) > 0 {
		order := 1
		switch {
		case len(changes) == 0:
			order = -1
		case len(entries) > 0:
			order = bytes.Compare(entries[0].key[:], changes[0].key[:])
		}
		if order < 0 {
			merged = append(merged, entries[0])
			entries = entries[1:]
			continue
		}
		if changes[0].num != 0 {
			merged = append(merged, changes[0])
		}
		changes = changes[1:]
		if order == 0 {
			entries = entries[1:]
		}
	}
	return merged
}

// UpdateState returns the state that differs from root in changes, of which a later one of the same key wins. New nodes go to fresh,
// which may hold nodes of earlier updates that are not stored yet, root's among them.
func (db *DB) UpdateState(ctx context.Context, room int64, root StateRoot, changes []StateEntry, fresh *StateNodes) (StateRoot, error) {
	var parts [2][]treeEntry
	for _, c := range changes {
		part := 0
		if c.Type == memberType {
			part = 1
		}
		parts[part] = append(parts[part], treeEntry{hashStateKey(c.Type, c.Key), c.Num})
	}
	edit := treeEdit{fresh: fresh, load: func(h nodeHash) (*treeNode, error) { return db.stateNode(ctx, room, h, fresh) }}
	for part, hash := range []*nodeHash{&root.Others, &root.Members} {
		if len(parts[part]) == 0 {
			continue
		}
		ref, err := edit.root(*hash)
		if err == nil {
			ref, err = edit.apply(ref, 0, sortChanges(parts[part]))
		}
		if err != nil {
			return root, fmt.Errorf("update state of room %d: %w", room, err)
		}
		*hash = ref.hash
	}
	return root, nil
}

// sortChanges sorts by key and keeps the last change of each.
func sortChanges(changes []treeEntry) []treeEntry {
	if len(changes) == 1 {
		return changes
	}
	slices.SortStableFunc(changes, func(a, b treeEntry) int { return bytes.Compare(a.key[:], b.key[:]) })
	kept := changes[:0]
	for i, c := range changes {
		if i+1 < len(changes) && changes[i+1].key == c.key {
			continue
		}
		kept = append(kept, c)
	}
	return kept
}

// Bytes is the size of the nodes to be written.
func (s *StateNodes) Bytes() int {
	total := 0
	for _, b := range s.bytes {
		total += len(b)
	}
	return total
}
