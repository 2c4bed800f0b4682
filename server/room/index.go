package room

import (
	"context"
	"errors"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// The index of words, and of times, is brought forward in the background, some hundred events at a time, so that a message that is sent does
// not pay for it. A search first brings it up to date.

const (
	indexBatch   = 512              // events that are indexed in one write
	indexDelay   = 30 * time.Second // how long the index may lag behind when little is said
	indexHeard   = 20_000           // events that are remembered until they are indexed
	historySpan  = 2_000            // event numbers that are looked at in one step back
	historyShare = 4                // one part in so many of the time is spent on what was there before the index
	searchWait   = time.Second      // how long a search waits for the index
	indexFree    = 10 * time.Minute // how often the words of events that are gone are deleted
)

// indexer brings the index forward.
type indexer struct {
	wake chan struct{}

	mu sync.Mutex // guards what follows; taken before none
	// heard are the numbers of the events that were committed since the index was last brought forward, up to the position heardTo. unsure is
	// set when there may be others, for which the database is asked.
	heard   []int64
	heardTo int64
	unsure  bool

	working sync.Mutex // held while the index is written; taken before mu
	state   storage.IndexState
	known   bool // state was read
}

// hear takes in what was committed. It runs on the writer's goroutine.
func (x *indexer) hear(c storage.Commit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range c.Changes {
		if c.Changes[i].Foreign {
			x.unsure = true
		}
		for _, e := range c.Changes[i].Events {
			x.heard = append(x.heard, e.Num)
		}
	}
	if len(x.heard) > indexHeard {
		x.heard, x.unsure = nil, true
	}
	x.heardTo = c.Position
	if len(x.heard) >= indexBatch || x.unsure {
		x.rouse()
	}
}

func (x *indexer) rouse() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// take gives what was heard, and the position up to which it reaches.
func (x *indexer) take() (nums []int64, to int64, unsure bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	nums, to, unsure = x.heard, x.heardTo, x.unsure
	x.heard, x.unsure = nil, false
	return nums, to, unsure
}

// lost is called when what was taken could not be written.
func (x *indexer) lost() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unsure = true
}

// RunIndex keeps the index of words and times until ctx ends.
func (s *Service) RunIndex(ctx context.Context) error {
	ticker := time.NewTicker(indexDelay)
	defer ticker.Stop()
	progress, freed := time.Now(), time.Time{}
	for ctx.Err() == nil {
		began := time.Now()
		free := began.Sub(freed) > indexFree
		more, err := s.indexSome(ctx, free)
		if free && !more && err == nil {
			freed = began
		}
		if err != nil && ctx.Err() == nil {
			s.o.Log.Error("index", "err", err)
		}
		if !more || err != nil {
			select {
			case <-ctx.Done():
			case <-s.index.wake:
			case <-ticker.C:
			}
			continue
		}
		if began.Sub(progress) > indexDelay {
			progress = began
			s.index.working.Lock()
			s.o.Log.Info("events from before the index are being indexed", "left", s.index.state.Back)
			s.index.working.Unlock()
		}
		timer := time.NewTimer((historyShare - 1) * time.Since(began)) // others need the machine too
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// indexSome indexes what is new, and some of what is old, or tidies up. more: there is more to do at once.
func (s *Service) indexSome(ctx context.Context, free bool) (more bool, err error) {
	if err := s.catchUp(ctx); err != nil {
		return false, err
	}
	more, err = s.indexHistory(ctx)
	if err != nil || more {
		return more, err
	}
	return s.o.DB.TidyIndex(ctx, free)
}

// indexForSearch brings the index up to date within a short time. unfinished: older events are not in it yet.
func (s *Service) indexForSearch(ctx context.Context) (unfinished bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, searchWait)
	defer cancel()
	err = s.catchUp(waiting)
	for unfinished = true; unfinished && err == nil; {
		unfinished, err = s.indexHistory(waiting)
	}
	if waiting.Err() != nil && ctx.Err() == nil {
		s.o.Log.Info("a search is answered before the index is up to date")
		return true, nil
	}
	return unfinished, err
}

// catchUp indexes what is new.
func (s *Service) catchUp(ctx context.Context) error {
	x := &s.index
	x.working.Lock()
	defer x.working.Unlock()
	for moved := 0; ; moved++ {
		err := s.tryCatchUp(ctx)
		if err == nil {
			return nil
		}
		x.lost()
		if x.known = false; !errors.Is(err, storage.ErrMoved) || moved == maxMoved {
			return err
		}
	}
}

func (s *Service) tryCatchUp(ctx context.Context) error {
	if err := s.indexState(ctx); err != nil {
		return err
	}
	x := &s.index
	nums, to, unsure := x.take()
	if unsure {
		to = s.o.DB.Position()
		if err := s.indexStream(ctx, to); err != nil {
			return err
		}
	} else if to > x.state.To {
		for len(nums) > 0 {
			n := min(len(nums), indexBatch)
			reached := x.state.To // until the last, so that a crash loses nothing
			if n == len(nums) {
				reached = to
			}
			events, err := s.o.DB.EventsThere(ctx, nums[:n])
			if err != nil {
				return err
			}
			if err := s.addToIndex(ctx, events, storage.IndexStep{To: reached, Back: x.state.Back}); err != nil {
				return err
			}
			nums = nums[n:]
		}
	}
	return s.indexQueue(ctx)
}

// indexState reads how far the index is, and begins one if there is none. working is held.
func (s *Service) indexState(ctx context.Context) error {
	x := &s.index
	if x.known {
		return nil
	}
	state, err := s.o.DB.IndexState(ctx)
	if errors.Is(err, storage.ErrNotFound) || err == nil && state.Version != s.wordsVersion() {
		state, err = s.o.DB.BeginIndex(ctx, s.wordsVersion())
	}
	if err != nil {
		return err
	}
	x.state, x.known = state, true
	x.lost() // what was committed before we began to listen
	return nil
}

// wordsVersion is another one where there is no search: the index then has no words.
func (s *Service) wordsVersion() int64 {
	if s.o.Config.Search {
		return wordsVersion
	}
	return 0
}

// indexStream indexes the stream up to a position, room by room.
func (s *Service) indexStream(ctx context.Context, to int64) error {
	x := &s.index
	from := x.state.To
	if to <= from {
		return nil
	}
	rooms, err := s.o.DB.RoomsSince(ctx, from)
	if err != nil {
		return err
	}
	var all []*storage.Event
	for _, room := range rooms {
		for at := from; ; {
			events, err := s.o.DB.EventsFromStream(ctx, room, at, to, indexBatch)
			if err != nil {
				return err
			}
			if all = append(all, events...); len(all) >= indexBatch {
				if err := s.addToIndex(ctx, all, storage.IndexStep{To: from, Back: x.state.Back}); err != nil {
					return err
				}
				all = nil
			}
			if len(events) < indexBatch {
				break
			}
			at = events[len(events)-1].Pos
		}
	}
	return s.addToIndex(ctx, all, storage.IndexStep{To: to, Back: x.state.Back})
}

// indexQueue looks at what has changed.
func (s *Service) indexQueue(ctx context.Context) error {
	x := &s.index
	for {
		queue, err := s.o.DB.IndexQueue(ctx, indexBatch)
		if err != nil || len(queue) == 0 {
			return err
		}
		nums := make([]int64, len(queue))
		for i, q := range queue {
			nums[i] = q.Num
		}
		events, err := s.o.DB.EventsThere(ctx, nums)
		if err != nil {
			return err
		}
		if err := s.addToIndex(ctx, events, storage.IndexStep{To: x.state.To, Back: x.state.Back, Done: queue}); err != nil || len(queue) < indexBatch {
			return err
		}
	}
}

// indexHistory goes back one step through what was there before the index.
func (s *Service) indexHistory(ctx context.Context) (more bool, err error) {
	x := &s.index
	x.working.Lock()
	defer x.working.Unlock()
	if err := s.indexState(ctx); err != nil || x.state.Back == 0 {
		return false, err
	}
	events, first, err := s.o.DB.EventsBelow(ctx, x.state.Back, historySpan)
	if err != nil {
		return false, err
	}
	err = s.addToIndex(ctx, events, storage.IndexStep{To: x.state.To, Back: first})
	if errors.Is(err, storage.ErrMoved) {
		x.known = false
		return true, nil
	}
	if err == nil && first == 0 {
		s.o.Log.Info("all events are indexed")
	}
	return x.state.Back > 0, err
}

// addToIndex adds events, and moves on as step says. working is held.
func (s *Service) addToIndex(ctx context.Context, events []*storage.Event, step storage.IndexStep) error {
	x := &s.index
	step.From = x.state
	if len(events) == 0 && len(step.Done) == 0 && step.To == x.state.To && step.Back == x.state.Back {
		return nil
	}
	for _, e := range events {
		if e.Hidden() {
			continue
		}
		step.Times = append(step.Times, storage.EventTime{Room: e.RoomNum, TS: e.OriginServerTS(), Num: e.Num})
		words, err := s.wordsOf(ctx, e)
		if err != nil {
			return err
		}
		if len(words) > 0 {
			step.Docs = append(step.Docs, storage.SearchDoc{Num: e.Num, Room: e.RoomNum, TS: e.OriginServerTS(), Words: words})
		}
	}
	state, err := s.o.DB.AddToIndex(ctx, step)
	if err == nil {
		x.state = state
	}
	return err
}

// wordsOf are the words of an event for the index. Those of names and topics are there twice, so that they can be looked for alone.
func (s *Service) wordsOf(ctx context.Context, e *storage.Event) ([]string, error) {
	if !s.o.Config.Search || e.RedactedBy != "" {
		return nil, nil
	}
	switch e.Type() {
	case matrix.TypeMessage:
		text, _ := messageText(e.Event)
		spoken, err := s.spoken(ctx, e)
		return indexWords(text + "\n" + spoken), err
	case matrix.TypeName, matrix.TypeTopic:
		words := indexWords(stateText(e.Event))
		mark := markOf(e.Type())
		for _, w := range words {
			words = append(words, mark+w)
		}
		return words, nil
	}
	return nil, nil
}

// markOf is what the words of a name or topic have before them, beside those without.
func markOf(typ string) string { return typ + "\n" }
