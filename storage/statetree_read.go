package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
)

// StateNum looks up the event that is the state of (typ, key); ErrNotFound if there is none. fresh may be nil; otherwise
// it holds nodes that are not stored yet.
func (db *DB) StateNum(ctx context.Context, room int64, root StateRoot, typ, key string, fresh *StateNodes) (int64, error) {
	h := root.Others
	if typ == memberType {
		h = root.Members
	}
	k := hashStateKey(typ, key)
	for depth := 0; h != (nodeHash{}); depth++ {
		n, err := db.stateNode(ctx, room, h, fresh)
		if err != nil {
			return 0, err
		}
		if n.children == nil {
			if num, ok := n.find(k); ok {
				return num, nil
			}
			break
		}
		h = n.children[k.nibble(depth)].hash
	}
	return 0, ErrNotFound
}

// StatePart selects trees of a state.
type StatePart int

// The parts of a state.
const (
	AllState     StatePart = iota
	OtherState             // all but m.room.member
	MembersState           // m.room.member only
)

func (p StatePart) roots(r StateRoot) []nodeHash {
	switch p {
	case OtherState:
		return []nodeHash{r.Others}
	case MembersState:
		return []nodeHash{r.Members}
	}
	return []nodeHash{r.Others, r.Members}
}

// StateNums lists the events of a state in no particular, but always the same, order.
func (db *DB) StateNums(ctx context.Context, room int64, root StateRoot, part StatePart, fresh *StateNodes) ([]int64, error) {
	var nums []int64
	level := part.roots(root)
	for len(level) > 0 {
		nodes, err := db.stateNodes(ctx, room, level, fresh)
		if err != nil {
			return nil, err
		}
		var next []nodeHash
		for _, n := range nodes {
			for _, e := range n.entries {
				nums = append(nums, e.num)
			}
			if n.children == nil {
				continue
			}
			for _, c := range n.children {
				if c.count > 0 {
					next = append(next, c.hash)
				}
			}
		}
		level = next
	}
	return nums, nil
}

// StateNumsAfter lists the events of a state whose numbers are above after. It remembers what it need not look at while the nodes are in memory, so
// that the newest events of a large state are found without going through all of it.
func (db *DB) StateNumsAfter(ctx context.Context, room int64, root StateRoot, part StatePart, after int64, fresh *StateNodes) ([]int64, error) {
	var nums []int64
	var levels [][]visit
	for level := part.roots(root); len(level) > 0; {
		nodes, err := db.stateNodes(ctx, room, level, fresh)
		if err != nil {
			return nil, err
		}
		visits := make([]visit, len(nodes))
		levels = append(levels, visits)
		level = nil
		for i, n := range nodes {
			visits[i].node = n
			if newest := n.newest.Load(); newest > 0 && newest <= after {
				continue
			}
			visits[i].entered = true
			for _, e := range n.entries {
				if e.num > after {
					nums = append(nums, e.num)
				}
			}
			if n.children == nil {
				continue
			}
			for _, c := range n.children {
				if c.count > 0 {
					level = append(level, c.hash)
				}
			}
		}
	}
	rememberNewest(levels)
	return nums, nil
}

// visit is a node on a walk, and whether the walk went on below it.
type visit struct {
	node    *treeNode
	entered bool
}

// rememberNewest notes in the nodes of a walk what is the newest below them, from the lowest level up.
func rememberNewest(levels [][]visit) {
	for depth := len(levels) - 1; depth >= 0; depth-- {
		child := 0 // on the next level, where the children of the nodes that were entered follow one another
		for _, v := range levels[depth] {
			if !v.entered {
				continue
			}
			n, newest := v.node, int64(0)
			for _, e := range n.entries {
				newest = max(newest, e.num)
			}
			if n.children != nil {
				for _, c := range n.children {
					if c.count > 0 {
						newest = max(newest, levels[depth+1][child].node.newest.Load())
						child++
					}
				}
			}
			n.newest.Store(newest)
		}
	}
}

// StateCount is the number of entries in a part of a state; it reads one node per tree.
func (db *DB) StateCount(ctx context.Context, room int64, root StateRoot, part StatePart) (int, error) {
	total := 0
	for _, h := range part.roots(root) {
		if h == (nodeHash{}) {
			continue
		}
		n, err := db.stateNode(ctx, room, h, nil)
		if err != nil {
			return 0, err
		}
		total += n.count()
	}
	return total, nil
}

// DiffState lists the keys in which the states a and b of a room differ. It reads only the nodes that differ.
func (db *DB) DiffState(ctx context.Context, room int64, a, b StateRoot, part StatePart, fresh *StateNodes) ([]StateDiff, error) {
	d := treeDiff{load: func(h nodeHash) (*treeNode, error) { return db.stateNode(ctx, room, h, fresh) }}
	as, bs := part.roots(a), part.roots(b)
	for i := range as {
		if err := d.walk(as[i], bs[i]); err != nil {
			return nil, fmt.Errorf("compare states of room %d: %w", room, err)
		}
	}
	return d.found, nil
}

type treeDiff struct {
	load  func(nodeHash) (*treeNode, error)
	found []StateDiff
}

func (d *treeDiff) walk(a, b nodeHash) error {
	if a == b {
		return nil
	}
	na, err := d.node(a)
	if err != nil {
		return err
	}
	nb, err := d.node(b)
	if err != nil {
		return err
	}
	if na.children != nil && nb.children != nil {
		for i := range na.children {
			if err := d.walk(na.children[i].hash, nb.children[i].hash); err != nil {
				return err
			}
		}
		return nil
	}
	ea, err := d.entries(na, nil)
	if err != nil {
		return err
	}
	eb, err := d.entries(nb, nil)
	if err != nil {
		return err
	}
	d.compare(ea, eb)
	return nil
}

func (d *treeDiff) node(h nodeHash) (*treeNode, error) {
	if h == (nodeHash{}) {
		return &treeNode{}, nil
	}
	return d.load(h)
}

// entries lists a subtree in the order of keys.
func (d *treeDiff) entries(n *treeNode, all []treeEntry) ([]treeEntry, error) {
	if n.children == nil {
		return append(all, n.entries...), nil
	}
	for _, c := range n.children {
		if c.count == 0 {
			continue
		}
		child, err := d.load(c.hash)
		if err == nil {
			all, err = d.entries(child, all)
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (d *treeDiff) compare(a, b []treeEntry) {
	for len(a) > 0 || len(b) > 0 {
		order := 1
		switch {
		case len(b) == 0:
			order = -1
		case len(a) > 0:
			order = bytes.Compare(a[0].key[:], b[0].key[:])
		}
		var diff StateDiff
		if order <= 0 {
			diff.A = a[0].num
			a = a[1:]
		}
		if order >= 0 {
			diff.B = b[0].num
			b = b[1:]
		}
		if diff.A != diff.B {
			d.found = append(d.found, diff)
		}
	}
}

// stateNode reads one node from fresh, the cache or the database.
func (db *DB) stateNode(ctx context.Context, room int64, h nodeHash, fresh *StateNodes) (*treeNode, error) {
	if fresh != nil {
		if n, ok := fresh.fresh[h]; ok {
			return n, nil
		}
	}
	if n, ok := db.nodes.get(h); ok {
		return n, nil
	}
	var blob []byte
	err := db.Read(ctx).Raw("SELECT node FROM state_nodes WHERE room = ? AND hash = ?", room, h[:]).Row().Scan(&blob)
	if err != nil {
		return nil, fmt.Errorf("read node %x of room %d: %w", h, room, err)
	}
	n, err := decodeNode(blob)
	if err == nil {
		db.nodes.put(h, n, len(blob))
	}
	return n, err
}

// stateNodes reads several nodes, in the order of hashes; the zero hash gives an empty leaf.
func (db *DB) stateNodes(ctx context.Context, room int64, hashes []nodeHash, fresh *StateNodes) ([]*treeNode, error) {
	nodes := make([]*treeNode, len(hashes))
	var missing []any
	at := map[nodeHash]int{}
	for i, h := range hashes {
		switch {
		case h == (nodeHash{}):
			nodes[i] = &treeNode{}
			continue
		case fresh != nil && fresh.fresh[h] != nil:
			nodes[i] = fresh.fresh[h]
			continue
		}
		if n, ok := db.nodes.get(h); ok {
			nodes[i] = n
			continue
		}
		at[h] = i
		missing = append(missing, h[:])
	}
	for chunk := range slices.Chunk(missing, maxIn) {
		if err := db.readNodes(ctx, room, chunk, func(h nodeHash, n *treeNode) { nodes[at[h]] = n }); err != nil {
			return nil, fmt.Errorf("read nodes of room %d: %w", room, err)
		}
	}
	for i, n := range nodes {
		if n == nil {
			return nil, fmt.Errorf("node %x of room %d: %w", hashes[i], room, ErrNotFound)
		}
	}
	return nodes, nil
}

func (db *DB) readNodes(ctx context.Context, room int64, hashes []any, found func(nodeHash, *treeNode)) error {
	rows, err := db.Read(ctx).Raw("SELECT hash, node FROM state_nodes WHERE room = ? AND hash IN ?", room, padded(hashes)).Rows()
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var hash, blob []byte
		if err := rows.Scan(&hash, &blob); err != nil {
			return err
		}
		if len(hash) != len(nodeHash{}) {
			return errBadNode
		}
		n, err := decodeNode(blob)
		if err != nil {
			return err
		}
		h := nodeHash(hash)
		db.nodes.put(h, n, len(blob))
		found(h, n)
	}
	return errors.Join(rows.Err(), rows.Close())
}

// writeNodes stores nodes. Those that are stored already are marked as of this generation, so that no sweep under way takes them.
func (tx *Tx) writeNodes(room, generation int64, nodes *StateNodes) error {
	in := tx.inserter("state_nodes", "room, hash, node, generation",
		" ON CONFLICT (room, hash) DO UPDATE SET generation = excluded.generation WHERE state_nodes.generation < excluded.generation")
	for i, h := range nodes.order {
		in.add(room, h[:], nodes.bytes[i], generation)
	}
	return in.flush()
}
