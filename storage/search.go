package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gorm.io/gorm"
)

// The index of words finds events by what is said in them. It is the same on both databases: segments, each of some thousand
// events, with a sorted list of words and for each word the events that have it, in blocks of a few kilobytes. A segment is
// written once. New events make a small one; several small ones become one larger one; so an event is written about three times,
// with its neighbours, and a page is never touched for one word. Within a segment the events are ordered by room and time, and segments
// are looked at from the newest on, until enough is found.
//
// The index lags behind the stream: see [DB.IndexState]. What it finds may have changed or gone, and may not be visible to
// everybody: the caller looks at the events.

// SearchDoc is an event for the index.
type SearchDoc struct {
	Num, Room int64
	TS        int64    // origin_server_ts, ms
	Words     []string // in the form in which they are looked for
}

// EventTime is when an event was sent.
type EventTime struct{ Room, TS, Num int64 }

// QueuedEvent is an event to be looked at again.
type QueuedEvent struct{ Num, Room, TS, Stamp int64 }

// IndexState says what has been indexed.
type IndexState struct {
	Version int64 // of the words: an index of another version is begun anew
	To      int64 // all events of the stream up to this position
	Back    int64 // and all events from this number on, of those that were here when the index was begun
	next    int64 // number of the next segment
}

const searchFact = "search"

func (s IndexState) String() string { return fmt.Sprint(s.Version, s.To, s.Back, s.next) }

func parseIndexState(text string) (s IndexState, err error) {
	fields := strings.Fields(text)
	numbers := []*int64{&s.Version, &s.To, &s.Back, &s.next}
	if len(fields) != len(numbers) {
		return s, fmt.Errorf("fact %s: %w", searchFact, errDamagedIndex)
	}
	for i, p := range numbers {
		if *p, err = strconv.ParseInt(fields[i], 10, 64); err != nil {
			return s, fmt.Errorf("fact %s: %w", searchFact, err)
		}
	}
	return s, nil
}

// IndexState reads how far the index is; ErrNotFound if it is not kept.
func (db *DB) IndexState(ctx context.Context) (IndexState, error) {
	text, err := db.Fact(ctx, searchFact)
	if err != nil {
		return IndexState{}, err
	}
	return parseIndexState(text)
}

// BeginIndex begins an empty index: what comes from now on is to be added at To, and what is here already below Back.
func (db *DB) BeginIndex(ctx context.Context, version int64) (s IndexState, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		var there string
		err := tx.Raw("SELECT value FROM facts WHERE name = ?", searchFact).Row().Scan(&there)
		if err == nil {
			if s, err = parseIndexState(there); err == nil && s.Version == version {
				return nil // another process was faster
			}
		}
		if err := tx.dropIndex(); err != nil {
			return err
		}
		s = IndexState{Version: version, To: db.position.Load(), next: 1}
		// After the position: what is committed later has a higher one.
		if err := tx.Raw("SELECT coalesce(max(num), 0) + 1 FROM events").Row().Scan(&s.Back); err != nil {
			return err
		}
		return tx.Exec("INSERT INTO facts (name, value) VALUES (?, ?)", searchFact, s.String()).Error
	})
	db.segments.clear()
	return s, err
}

// DropIndex deletes the index, if there is one.
func (db *DB) DropIndex(ctx context.Context) error {
	if _, err := db.Fact(ctx, searchFact); errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	err := db.Write(ctx, func(tx *Tx) error { return tx.dropIndex() })
	db.segments.clear()
	return err
}

func (tx *Tx) dropIndex() error {
	for _, statement := range []string{"DELETE FROM search_segments", "DELETE FROM search_blocks", "DELETE FROM event_times", "DELETE FROM index_queue"} {
		if err := tx.Exec(statement).Error; err != nil {
			return err
		}
	}
	return tx.Exec("DELETE FROM facts WHERE name = ?", searchFact).Error
}

// RoomsSince lists the rooms that have events in the stream after a position.
func (db *DB) RoomsSince(ctx context.Context, pos int64) (rooms []int64, err error) {
	err = db.Read(ctx).Raw("SELECT num FROM rooms WHERE pos > ? ORDER BY num", pos).Scan(&rooms).Error
	return rooms, err
}

// EventsBelow reads the events with the numbers from first to below that are not hidden, of at most span numbers, and tells the lowest
// number that was looked at, 0 if there is nothing further down.
func (db *DB) EventsBelow(ctx context.Context, below, span int64) (events []*Event, first int64, err error) {
	var last int64
	if err := db.Read(ctx).Raw("SELECT coalesce(max(num), 0) FROM events WHERE num < ?", below).Row().Scan(&last); err != nil || last == 0 {
		return nil, 0, err
	}
	first = max(last-span+1, 0)
	events, err = db.queryUncached(ctx, "WHERE num >= ? AND num <= ? AND flags = 0 ORDER BY num DESC", first, last)
	return events, first, err
}

// queryUncached is queryEvents for many events that nobody will soon look at again.
func (db *DB) queryUncached(ctx context.Context, query string, args ...any) ([]*Event, error) {
	rows, err := db.Read(ctx).Raw("SELECT "+eventColumns+" FROM events "+query, args...).Rows()
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer rows.Close()
	var events []*Event
	for rows.Next() {
		e, err := db.scanEvent(ctx, rows)
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

// IndexQueue lists events that are to be looked at again.
func (db *DB) IndexQueue(ctx context.Context, limit int) (queue []QueuedEvent, err error) {
	err = db.Read(ctx).Raw("SELECT num, room, ts, stamp FROM index_queue ORDER BY num LIMIT ?", limit).Scan(&queue).Error
	return queue, err
}

// EventsThere reads those of the events that exist.
func (db *DB) EventsThere(ctx context.Context, nums []int64) ([]*Event, error) {
	var events []*Event
	var missing []int64
	for _, num := range nums {
		if e, ok := db.events.get(num); ok {
			events = append(events, e)
		} else {
			missing = append(missing, num)
		}
	}
	slices.Sort(missing)
	for chunk := range slices.Chunk(missing, maxIn) {
		some, err := db.queryEvents(ctx, "WHERE num IN ?", padded(chunk))
		if err != nil {
			return nil, err
		}
		events = append(events, some...)
	}
	return events, nil
}

// IndexStep is one step of indexing.
type IndexStep struct {
	From  IndexState // what was read before the step
	To    int64      // see IndexState
	Back  int64
	Docs  []SearchDoc
	Times []EventTime
	// Done are taken from the queue; where they stood in the index before, they stand no more.
	Done []QueuedEvent
}

// AddToIndex writes a step and returns the state after it. ErrMoved: somebody else has written one meanwhile.
func (db *DB) AddToIndex(ctx context.Context, step IndexStep) (IndexState, error) {
	to := step.From
	to.To, to.Back, to.next = step.To, step.Back, to.next+1
	var s *segment
	if len(step.Docs) > 0 {
		s = buildSegment(step.Docs)
	}
	dead, err := db.findDead(ctx, step.Done)
	if err != nil {
		return to, err
	}
	err = db.Write(ctx, func(tx *Tx) error {
		if err := tx.moveIndex(step.From, to); err != nil {
			return err
		}
		if s != nil {
			if err := tx.insertSegment(step.From.next, s); err != nil {
				return err
			}
		}
		for seg, list := range dead {
			if err := tx.Exec("UPDATE search_segments SET dead = ? WHERE seg = ?", encodeDead(list), seg).Error; err != nil {
				return err
			}
		}
		for _, q := range step.Done {
			if err := tx.Exec("DELETE FROM event_times WHERE room = ? AND ts = ? AND num = ?", q.Room, q.TS, q.Num).Error; err != nil {
				return err
			}
		}
		in := tx.inserter("event_times", "room, ts, num", " ON CONFLICT DO NOTHING")
		for _, t := range step.Times {
			in.add(t.Room, t.TS, t.Num)
		}
		if err := in.flush(); err != nil {
			return err
		}
		for _, q := range step.Done {
			if err := tx.Exec("DELETE FROM index_queue WHERE num = ? AND stamp = ?", q.Num, q.Stamp).Error; err != nil {
				return err
			}
		}
		return nil
	})
	return to, err
}

// moveIndex compares and swaps the state of the index.
func (tx *Tx) moveIndex(from, to IndexState) error {
	n, err := tx.affect("UPDATE facts SET value = ? WHERE name = ? AND value = ?", to.String(), searchFact, from.String())
	if err == nil && n == 0 {
		err = ErrMoved
	}
	return err
}

func (tx *Tx) insertSegment(seg int64, s *segment) error {
	head, encoded, blocks := s.encode()
	err := tx.Exec("INSERT INTO search_segments (seg, docs, first_ts, last_ts, head) VALUES (?, ?, ?, ?, ?)", seg, head.docs, head.firstTS, head.lastTS, encoded).Error
	if err != nil {
		return fmt.Errorf("insert segment: %w", err)
	}
	for n, block := range blocks {
		if err := tx.Exec("INSERT INTO search_blocks (id, data) VALUES (?, ?)", blockID(seg, n), block).Error; err != nil {
			return fmt.Errorf("insert block of a segment: %w", err)
		}
	}
	return nil
}

func blockID(seg int64, n int) int64 { return seg<<segmentBit | int64(n) }

// segmentRow is a segment as of one read.
type segmentRow struct {
	*segmentHead
	dead []uint32
}

// readSegments lists the segments, the newest first.
func (db *DB) readSegments(read *gorm.DB) ([]segmentRow, error) {
	rows, err := read.Raw("SELECT seg, docs, first_ts, last_ts, dead FROM search_segments ORDER BY last_ts DESC, seg DESC").Rows()
	if err != nil {
		return nil, fmt.Errorf("read segments: %w", err)
	}
	defer rows.Close()
	var segments []segmentRow
	var missing []int64
	for rows.Next() {
		var h segmentHead
		var dead []byte
		if err := rows.Scan(&h.seg, &h.docs, &h.firstTS, &h.lastTS, &dead); err != nil {
			return nil, fmt.Errorf("read segments: %w", err)
		}
		kept, ok := db.segments.get(h.seg)
		if !ok {
			kept = &h
			missing = append(missing, h.seg)
		}
		segments = append(segments, segmentRow{kept, decodeDead(dead)})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read segments: %w", err)
	}
	rows.Close() // before the next read, which may need the connection
	heads := map[int64][]byte{}
	for chunk := range slices.Chunk(missing, maxIn) {
		if err := scanBlobs(read.Raw("SELECT seg, head FROM search_segments WHERE seg IN ?", padded(chunk)), heads); err != nil {
			return nil, err
		}
	}
	for _, s := range segments {
		if head, ok := heads[s.seg]; ok {
			if err := s.decode(head); err != nil {
				return nil, fmt.Errorf("segment %d: %w", s.seg, err)
			}
			db.segments.put(s.seg, s.segmentHead, s.size())
		}
	}
	return segments, nil
}

// scanBlobs reads rows of a number and a blob.
func scanBlobs(query *gorm.DB, into map[int64][]byte) error {
	rows, err := query.Rows()
	if err != nil {
		return fmt.Errorf("read segments: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var b []byte
		if err := rows.Scan(&id, &b); err != nil {
			return fmt.Errorf("read segments: %w", err)
		}
		into[id] = b
	}
	return rows.Err()
}

// readBlocks reads the blocks that are not in the map yet.
func readBlocks(read *gorm.DB, ids []int64, into map[int64][]byte) error {
	missing := slices.DeleteFunc(ids, func(id int64) bool { _, ok := into[id]; return ok })
	slices.Sort(missing)
	missing = slices.Compact(missing)
	for chunk := range slices.Chunk(missing, maxIn) {
		if err := scanBlobs(read.Raw("SELECT id, data FROM search_blocks WHERE id IN ?", padded(chunk)), into); err != nil {
			return err
		}
	}
	for _, id := range missing {
		if into[id] == nil {
			return fmt.Errorf("block %d: %w", id, errDamagedIndex)
		}
	}
	return nil
}

// findDead finds where events stand in the index, and gives the lists of dead events with them for the segments that change.
func (db *DB) findDead(ctx context.Context, gone []QueuedEvent) (dead map[int64][]uint32, err error) {
	if len(gone) == 0 {
		return nil, nil
	}
	dead = map[int64][]uint32{}
	return dead, db.Snapshot(ctx, func(read *gorm.DB) error {
		segments, err := db.readSegments(read)
		if err != nil {
			return err
		}
		blocks := map[int64][]byte{}
		for _, s := range segments {
			var found []uint32
			for _, q := range gone {
				k := docKey{q.Room, q.TS, q.Num}
				if first, end := s.span(q.Room); first == end || q.TS < s.firstTS || q.TS > s.lastTS {
					continue
				}
				n := s.chunkOf(k)
				if err := readBlocks(read, []int64{blockID(s.seg, n)}, blocks); err != nil {
					return err
				}
				docs, err := s.chunk(n, blocks[blockID(s.seg, n)])
				if err != nil {
					return fmt.Errorf("segment %d: %w", s.seg, err)
				}
				if i, ok := slices.BinarySearchFunc(docs, k, docKey.compare); ok {
					found = append(found, uint32(n*chunkDocs+i))
				}
			}
			if found != nil {
				found = append(found, s.dead...)
				slices.Sort(found)
				dead[s.seg] = slices.Compact(found)
			}
		}
		return nil
	})
}

// reindex queues the events that a condition on the table events describes, because they have changed or are about to be deleted; in
// the latter case before they are.
func (tx *Tx) reindex(where string, args ...any) error {
	err := tx.Exec(`INSERT INTO index_queue (num, room, ts, stamp) SELECT num, room, ts, 1 FROM events WHERE `+where+
		` AND EXISTS (SELECT 1 FROM facts WHERE name = 'search')
		ON CONFLICT (num) DO UPDATE SET stamp = index_queue.stamp + 1`, args...).Error
	if err != nil {
		return fmt.Errorf("queue for the index: %w", err)
	}
	return nil
}

// queueForIndex queues what the index would not find at the end of the stream: events without a position, and those that were redacted.
func (tx *Tx) queueForIndex(appends []*RoomAppend) error {
	for _, a := range appends {
		for i, list := range [][]*Event{a.Events, a.Updates} {
			for _, e := range list {
				if e.Hidden() || e.Pos > 0 && (i == 0 || e.RedactedBy == "") {
					continue
				}
				if err := tx.reindex("num = ?", e.Num); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const (
	mergedSegments = 8       // so many of about one size become one
	fullSegment    = 1 << 14 // events: one that large is not merged any more
)

// TidyIndex merges small segments, and with free it frees one of events that are no longer to be found. It reports whether there may be
// more to do.
func (db *DB) TidyIndex(ctx context.Context, free bool) (more bool, err error) {
	from, err := db.IndexState(ctx)
	if err != nil {
		if errors.Is(err, ErrNotFound) {
			err = nil
		}
		return false, err
	}
	var merged *segment
	var old []int64
	err = db.Snapshot(ctx, func(read *gorm.DB) error {
		segments, err := db.readSegments(read)
		if err != nil {
			return err
		}
		chosen := toMerge(segments, free)
		var parts []*segment
		var dead [][]uint32
		for _, s := range chosen {
			part, err := s.load(read)
			if err != nil {
				return fmt.Errorf("segment %d: %w", s.seg, err)
			}
			parts, dead, old = append(parts, part), append(dead, s.dead), append(old, s.seg)
		}
		merged = mergeSegments(parts, dead)
		return nil
	})
	if err != nil || len(old) == 0 {
		return false, err
	}
	to := from
	to.next++
	err = db.Write(ctx, func(tx *Tx) error {
		if err := tx.moveIndex(from, to); err != nil {
			return err
		}
		for _, seg := range old {
			if err := tx.Exec("DELETE FROM search_segments WHERE seg = ?", seg).Error; err != nil {
				return err
			}
			if err := tx.Exec("DELETE FROM search_blocks WHERE id >= ? AND id < ?", blockID(seg, 0), blockID(seg+1, 0)).Error; err != nil {
				return err
			}
		}
		if len(merged.docs) == 0 {
			return nil
		}
		return tx.insertSegment(from.next, merged)
	})
	if errors.Is(err, ErrMoved) {
		err = nil // somebody else is at it
	}
	return err == nil, err
}

// toMerge chooses segments that are to become one: some neighbours in time of about one size, or one with dead events.
func toMerge(segments []segmentRow, free bool) []segmentRow {
	sizes := map[int][]segmentRow{}
	for _, s := range segments {
		if s.docs >= fullSegment {
			continue
		}
		size := 0
		for most := fullSegment / mergedSegments; s.docs < most; most /= mergedSegments {
			size++
		}
		sizes[size] = append(sizes[size], s)
	}
	for _, some := range sizes {
		if len(some) >= mergedSegments {
			return some[:mergedSegments]
		}
	}
	i := slices.IndexFunc(segments, func(s segmentRow) bool { return len(s.dead) > 0 })
	if i < 0 || !free {
		return nil
	}
	return segments[i : i+1]
}

// load reads a whole segment.
func (h *segmentHead) load(read *gorm.DB) (*segment, error) {
	n := len(h.chunks) + len(h.words)
	ids := make([]int64, n)
	for i := range ids {
		ids[i] = blockID(h.seg, i)
	}
	blocks := map[int64][]byte{}
	if err := readBlocks(read, slices.Clone(ids), blocks); err != nil {
		return nil, err
	}
	s := &segment{words: map[string][]uint32{}}
	for i, id := range ids {
		if i < len(h.chunks) {
			docs, err := h.chunk(i, blocks[id])
			if err != nil {
				return nil, err
			}
			s.docs = append(s.docs, docs...)
			continue
		}
		err := eachWord(blocks[id], func(word, list []byte) bool {
			var at []uint32
			postings(list, func(p uint32) {
				if int(p) < h.docs {
					at = append(at, p)
				}
			})
			s.words[string(word)] = at
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// SearchWord is a word to look for.
type SearchWord struct {
	Text   string
	Prefix bool // words that begin with it will do
}

// SearchQuery says what to look for.
type SearchQuery struct {
	Rooms []int64
	Words []SearchWord // an event must have all of them
	// Before and After bound the time: older than Before, unless that is zero, and not older than After.
	Before, After SearchHit
	Limit         int // of hits, the newest
}

// SearchHit is an event that the index finds. Hits are ordered by TS, then Num.
type SearchHit struct{ TS, Num, Room int64 }

// Compare orders hits by time.
func (a SearchHit) Compare(b SearchHit) int {
	return cmp.Or(cmp.Compare(a.TS, b.TS), cmp.Compare(a.Num, b.Num))
}

// FoundWords is what SearchWords finds.
type FoundWords struct {
	Hits []SearchHit // the newest first
	// Seen is how many matches were seen on the way; with All there are no others.
	Seen int
	All  bool
}

// SearchWords looks for words in the index. Its work is bounded by the number of segments, one for each 16,000 events; it stops earlier when the
// limit is reached. The hits may be of events that are gone.
func (db *DB) SearchWords(ctx context.Context, q SearchQuery) (found FoundWords, err error) {
	if len(q.Words) == 0 || len(q.Rooms) == 0 || q.Limit <= 0 {
		return FoundWords{All: true}, nil
	}
	q.Rooms = slices.Sorted(slices.Values(q.Rooms))
	err = db.Snapshot(ctx, func(read *gorm.DB) error {
		segments, err := db.readSegments(read)
		if err != nil {
			return err
		}
		for size := 1; len(segments) > 0; size = min(2*size, 64) { // ever more at a time: one question to the database for all
			if found.enough(q.Limit, segments[0]) {
				return nil
			}
			n := min(size, len(segments))
			if err := q.look(read, segments[:n], &found); err != nil {
				return err
			}
			segments = segments[n:]
		}
		found.All = true
		return nil
	})
	return found, err
}

// look looks into some segments.
func (q *SearchQuery) look(read *gorm.DB, segments []segmentRow, found *FoundWords) error {
	var ids []int64
	allowed := make([]bitset, len(segments))
	for i, s := range segments {
		if !q.After.zero() && s.lastTS < q.After.TS || !q.Before.zero() && s.firstTS > q.Before.TS {
			continue
		}
		if allowed[i] = q.allowed(s); allowed[i] == nil {
			continue
		}
		for _, w := range q.Words {
			for n, to := s.blocksOf(w); n < to; n++ {
				ids = append(ids, blockID(s.seg, n))
			}
		}
	}
	blocks := map[int64][]byte{}
	if err := readBlocks(read, ids, blocks); err != nil {
		return err
	}
	for i, s := range segments {
		if allowed[i] == nil {
			continue
		}
		if err := q.matches(s, allowed[i], blocks); err != nil {
			return fmt.Errorf("segment %d: %w", s.seg, err)
		}
		matches := allowed[i].all()
		if found.enough(q.Limit, s) {
			found.Seen += len(matches)
			continue
		}
		if err := q.collect(read, s, matches, found); err != nil {
			return fmt.Errorf("segment %d: %w", s.seg, err)
		}
	}
	return nil
}

// enough reports whether a segment has nothing that is newer than the hits that were found.
func (f *FoundWords) enough(limit int, s segmentRow) bool {
	return len(f.Hits) >= limit && f.Hits[limit-1].TS > s.lastTS
}

func (a SearchHit) zero() bool { return a.TS == 0 && a.Num == 0 }

// allowed are the events of a segment that are in the query's rooms and not dead; nil if there are none.
func (q *SearchQuery) allowed(s segmentRow) bitset {
	var set bitset
	for _, span := range s.rooms {
		if _, ok := slices.BinarySearch(q.Rooms, span.room); ok {
			if set == nil {
				set = newBitset(s.docs)
			}
			set.addRange(span.first, span.end)
		}
	}
	if set != nil {
		for _, at := range s.dead {
			set.remove(at)
		}
	}
	return set
}

// matches leaves in set those that have all words.
func (q *SearchQuery) matches(s segmentRow, set bitset, blocks map[int64][]byte) error {
	having := newBitset(s.docs)
	for _, w := range q.Words {
		clear(having)
		for n, to := s.blocksOf(w); n < to; n++ {
			if err := w.mark(blocks[blockID(s.seg, n)], having); err != nil {
				return err
			}
		}
		if !set.and(having) {
			return nil
		}
	}
	return nil
}

// collect turns matches into hits, of which it keeps the newest.
func (q *SearchQuery) collect(read *gorm.DB, s segmentRow, matches []uint32, found *FoundWords) error {
	var ids []int64
	for _, at := range matches {
		if id := blockID(s.seg, int(at)/chunkDocs); len(ids) == 0 || ids[len(ids)-1] != id {
			ids = append(ids, id)
		}
	}
	blocks := map[int64][]byte{}
	if err := readBlocks(read, ids, blocks); err != nil {
		return err
	}
	chunk, docs := -1, []docKey(nil)
	for _, at := range matches {
		if n := int(at) / chunkDocs; n != chunk {
			var err error
			if docs, err = s.chunk(n, blocks[blockID(s.seg, n)]); err != nil {
				return err
			}
			chunk = n
		}
		d := docs[int(at)%chunkDocs]
		hit := SearchHit{d.ts, d.num, d.room}
		if !q.Before.zero() && hit.Compare(q.Before) >= 0 || !q.After.zero() && hit.Compare(q.After) < 0 {
			continue
		}
		found.Seen++
		found.Hits = append(found.Hits, hit)
	}
	slices.SortFunc(found.Hits, func(a, b SearchHit) int { return b.Compare(a) })
	found.Hits = slices.CompactFunc(found.Hits, func(a, b SearchHit) bool { return a.Num == b.Num })
	found.Hits = found.Hits[:min(len(found.Hits), q.Limit)]
	return nil
}
