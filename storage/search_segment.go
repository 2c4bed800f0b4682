package storage

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"strings"
)

// docKey says where an event stands in a segment: by room, then by time.
type docKey struct{ room, ts, num int64 }

func (a docKey) compare(b docKey) int {
	return cmp.Or(cmp.Compare(a.room, b.room), cmp.Compare(a.ts, b.ts), cmp.Compare(a.num, b.num))
}

const (
	chunkDocs  = 256     // events in one block of events
	termBlock  = 8 << 10 // bytes after which a block of words ends
	segmentBit = 20      // the number of a block has so many bits
)

// segment is a segment as it is built: its events in order, and for each word those that have it, by their place in the order.
type segment struct {
	docs  []docKey
	words map[string][]uint32
}

// segmentHead is what one must know of a segment to look into it.
type segmentHead struct {
	seg             int64
	firstTS, lastTS int64
	docs            int
	rooms           []roomSpan // by room
	chunks          []docKey   // the first event of each block of events
	words           []string   // the first word of each block of words
}

// roomSpan says which events of a segment are of one room.
type roomSpan struct {
	room       int64
	first, end int
}

func (h *segmentHead) size() int {
	n := 200 + 24*(len(h.rooms)+len(h.chunks))
	for _, w := range h.words {
		n += 16 + len(w)
	}
	return n
}

// span finds the events of a room.
func (h *segmentHead) span(room int64) (first, end int) {
	i, ok := slices.BinarySearchFunc(h.rooms, room, func(s roomSpan, room int64) int { return cmp.Compare(s.room, room) })
	if !ok {
		return 0, 0
	}
	return h.rooms[i].first, h.rooms[i].end
}

// chunkOf is the block of events that would hold an event.
func (h *segmentHead) chunkOf(k docKey) int {
	i, found := slices.BinarySearchFunc(h.chunks, k, docKey.compare)
	if !found {
		i--
	}
	return max(i, 0)
}

// blocksOf are the numbers of the first block that can hold a word, and of the one after the last.
func (h *segmentHead) blocksOf(w SearchWord) (from, to int) {
	i, found := slices.BinarySearch(h.words, w.Text)
	from = i
	if !found {
		from = max(i-1, 0)
	}
	to = min(from+1, len(h.words))
	for w.Prefix && to < len(h.words) && (h.words[to] < w.Text || strings.HasPrefix(h.words[to], w.Text)) {
		to++
	}
	return len(h.chunks) + from, len(h.chunks) + to
}

// buildSegment makes a segment of events. What is there twice is taken once.
func buildSegment(docs []SearchDoc) *segment {
	docs = slices.Clone(docs)
	key := func(d *SearchDoc) docKey { return docKey{d.Room, d.TS, d.Num} }
	slices.SortFunc(docs, func(a, b SearchDoc) int { return key(&a).compare(key(&b)) })
	s := &segment{words: map[string][]uint32{}}
	for i := range docs {
		k := key(&docs[i])
		if n := len(s.docs); n > 0 && s.docs[n-1] == k {
			continue
		}
		at := uint32(len(s.docs))
		s.docs = append(s.docs, k)
		for _, w := range docs[i].Words {
			if list := s.words[w]; len(list) == 0 || list[len(list)-1] != at {
				s.words[w] = append(list, at)
			}
		}
	}
	return s
}

// mergeSegments makes one of several, without the events that are dead.
func mergeSegments(parts []*segment, dead [][]uint32) *segment {
	type origin struct {
		key  docKey
		part int
		at   uint32
	}
	var all []origin
	places := make([][]int32, len(parts)) // of each part's events in the new one; -1: not there
	for p, part := range parts {
		places[p] = make([]int32, len(part.docs))
		for at, k := range part.docs {
			places[p][at] = -1
			if _, gone := slices.BinarySearch(dead[p], uint32(at)); !gone {
				all = append(all, origin{k, p, uint32(at)})
			}
		}
	}
	slices.SortFunc(all, func(a, b origin) int { return cmp.Or(a.key.compare(b.key), cmp.Compare(a.part, b.part)) })
	m := &segment{words: map[string][]uint32{}}
	for _, o := range all {
		if n := len(m.docs); n > 0 && m.docs[n-1] == o.key {
			continue
		}
		places[o.part][o.at] = int32(len(m.docs))
		m.docs = append(m.docs, o.key)
	}
	for p, part := range parts {
		for w, list := range part.words {
			for _, at := range list {
				if place := places[p][at]; place >= 0 {
					m.words[w] = append(m.words[w], uint32(place))
				}
			}
		}
	}
	for _, list := range m.words {
		slices.Sort(list)
	}
	return m
}

// encode writes a segment: its head and its blocks. It has at least one event.
func (s *segment) encode() (head segmentHead, headBytes []byte, blocks [][]byte) {
	head.docs = len(s.docs)
	head.firstTS, head.lastTS = s.docs[0].ts, s.docs[0].ts
	for i, d := range s.docs {
		head.firstTS, head.lastTS = min(head.firstTS, d.ts), max(head.lastTS, d.ts)
		if n := len(head.rooms); n == 0 || head.rooms[n-1].room != d.room {
			head.rooms = append(head.rooms, roomSpan{room: d.room, first: i})
		}
		head.rooms[len(head.rooms)-1].end = i + 1
	}
	for chunk := range slices.Chunk(s.docs, chunkDocs) {
		head.chunks = append(head.chunks, chunk[0])
		var b []byte
		var last docKey
		for _, d := range chunk {
			b = binary.AppendVarint(b, d.ts-last.ts)
			b = binary.AppendVarint(b, d.num-last.num)
			last = d
		}
		blocks = append(blocks, b)
	}
	words := make([]string, 0, len(s.words))
	for w := range s.words {
		words = append(words, w)
	}
	slices.Sort(words)
	var block, list []byte
	last := ""
	for i, w := range words {
		if len(block) == 0 {
			head.words = append(head.words, w)
			last = ""
		}
		shared := 0
		for shared < min(len(last), len(w)) && last[shared] == w[shared] {
			shared++
		}
		list = list[:0]
		previous := uint32(0)
		for _, at := range s.words[w] {
			list = binary.AppendUvarint(list, uint64(at-previous))
			previous = at
		}
		block = binary.AppendUvarint(block, uint64(shared))
		block = binary.AppendUvarint(block, uint64(len(w)-shared))
		block = append(block, w[shared:]...)
		block = binary.AppendUvarint(block, uint64(len(list)))
		block = append(block, list...)
		last = w
		if len(block) >= termBlock || i == len(words)-1 {
			blocks = append(blocks, slices.Clone(block))
			block = block[:0]
		}
	}
	return head, head.encode(), blocks
}

func (h *segmentHead) encode() []byte {
	b := binary.AppendUvarint(nil, uint64(len(h.rooms)))
	room := int64(0)
	for _, r := range h.rooms {
		b = binary.AppendVarint(b, r.room-room)
		b = binary.AppendUvarint(b, uint64(r.end-r.first))
		room = r.room
	}
	b = binary.AppendUvarint(b, uint64(len(h.chunks)))
	var last docKey
	for _, c := range h.chunks {
		b = binary.AppendVarint(b, c.room-last.room)
		b = binary.AppendVarint(b, c.ts-last.ts)
		b = binary.AppendVarint(b, c.num-last.num)
		last = c
	}
	b = binary.AppendUvarint(b, uint64(len(h.words)))
	for _, w := range h.words {
		b = binary.AppendUvarint(b, uint64(len(w)))
		b = append(b, w...)
	}
	return b
}

var errDamagedIndex = errors.New("the index of words is damaged")

// reader reads what the functions above have written. It never reads past the end; bad is set where it would.
type segmentReader struct {
	b   []byte
	bad bool
}

func (r *segmentReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *segmentReader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *segmentReader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// decode reads a head; seg, docs, firstTS and lastTS come from the row.
func (h *segmentHead) decode(b []byte) error {
	r := segmentReader{b: b}
	room, at := int64(0), 0
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		room += r.varint()
		span := roomSpan{room, at, at + int(r.uvarint())}
		h.rooms, at = append(h.rooms, span), span.end
	}
	var c docKey
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		c = docKey{c.room + r.varint(), c.ts + r.varint(), c.num + r.varint()}
		h.chunks = append(h.chunks, c)
	}
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		h.words = append(h.words, string(r.bytes()))
	}
	if r.bad || at != h.docs || len(h.chunks) != (h.docs+chunkDocs-1)/chunkDocs {
		return errDamagedIndex
	}
	return nil
}

// chunk reads a block of events.
func (h *segmentHead) chunk(n int, block []byte) ([]docKey, error) {
	docs := make([]docKey, min(chunkDocs, h.docs-n*chunkDocs))
	r := segmentReader{b: block}
	var last docKey
	span, _ := slices.BinarySearchFunc(h.rooms, n*chunkDocs, func(s roomSpan, at int) int { return cmp.Compare(s.end-1, at) })
	for i := range docs {
		for span < len(h.rooms)-1 && h.rooms[span].end <= n*chunkDocs+i {
			span++
		}
		last = docKey{h.rooms[span].room, last.ts + r.varint(), last.num + r.varint()}
		docs[i] = last
	}
	if r.bad {
		return nil, errDamagedIndex
	}
	return docs, nil
}

// eachWord reads a block of words. list is read with postings.
func eachWord(block []byte, fn func(word, list []byte) (goOn bool)) error {
	r := segmentReader{b: block}
	var word []byte
	for len(r.b) > 0 {
		shared := r.uvarint()
		if shared > uint64(len(word)) {
			return errDamagedIndex
		}
		word = append(word[:shared], r.bytes()...)
		list := r.bytes()
		if r.bad {
			return errDamagedIndex
		}
		if !fn(word, list) {
			return nil
		}
	}
	return nil
}

// postings calls fn with the events that have a word.
func postings(list []byte, fn func(at uint32)) {
	at := uint64(0)
	for len(list) > 0 {
		d, n := binary.Uvarint(list)
		if n <= 0 {
			return
		}
		at += d
		list = list[n:]
		fn(uint32(at))
	}
}

// mark sets the bits of the events that have a word, as far as it stands in the block.
func (w *SearchWord) mark(block []byte, set bitset) error {
	return eachWord(block, func(word, list []byte) bool {
		switch {
		case string(word) == w.Text || w.Prefix && strings.HasPrefix(string(word), w.Text):
			postings(list, set.add)
			return w.Prefix
		default:
			return string(word) < w.Text
		}
	})
}

// bitset is a set of the events of a segment.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) add(at uint32) {
	if i := int(at / 64); i < len(b) {
		b[i] |= 1 << (at % 64)
	}
}

func (b bitset) remove(at uint32) {
	if i := int(at / 64); i < len(b) {
		b[i] &^= 1 << (at % 64)
	}
}

func (b bitset) addRange(first, end int) {
	for i := first; i < end; i++ {
		if i%64 == 0 && end-i >= 64 {
			b[i/64] = ^uint64(0)
			i += 63
			continue
		}
		b.add(uint32(i))
	}
}

// and keeps what is in both, and reports whether anything is.
func (b bitset) and(other bitset) bool {
	any := uint64(0)
	for i := range b {
		b[i] &= other[i]
		any |= b[i]
	}
	return any != 0
}

// all lists what is in it.
func (b bitset) all() []uint32 {
	var list []uint32
	for i, word := range b {
		for ; word != 0; word &= word - 1 {
			list = append(list, uint32(i*64+bits.TrailingZeros64(word)))
		}
	}
	return list
}

// encodeDead and decodeDead write and read the list of events that are no longer to be found, in order.
func encodeDead(list []uint32) []byte {
	var b []byte
	last := uint32(0)
	for _, at := range list {
		b = binary.AppendUvarint(b, uint64(at-last))
		last = at
	}
	return b
}

func decodeDead(b []byte) (list []uint32) {
	postings(b, func(at uint32) { list = append(list, at) })
	return list
}
