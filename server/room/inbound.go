package room

import (
	"context"
	"errors"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
)

const (
	// maxWorkers is how many rooms have their gaps filled at the same time.
	maxWorkers = 16
	// lateTimeout bounds the work on one event that waits for a gap to be filled.
	lateTimeout = 3 * time.Minute
	// lateBatch is how many waiting events are read at a time.
	lateBatch = 20
)

// inboundQueues work on the events that wait in inbound_events: one goroutine per room, so that a slow room does not hold up others.
// The zero value is ready for use.
type inboundQueues struct {
	mu      sync.Mutex
	rooms   map[matrix.RoomID]bool // being worked on; true: look again, something new has come
	slots   chan struct{}
	ctx     context.Context // ends when the service is closed
	stop    context.CancelFunc
	closed  bool
	running sync.WaitGroup
}

// kick has the room's waiting events worked on.
func (q *inboundQueues) kick(s *Service, room matrix.RoomID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	if q.rooms == nil {
		q.rooms = map[matrix.RoomID]bool{}
		q.slots = make(chan struct{}, maxWorkers)
		q.ctx, q.stop = context.WithCancel(context.Background())
	}
	if _, busy := q.rooms[room]; busy {
		q.rooms[room] = true
		return
	}
	q.rooms[room] = false
	q.running.Go(func() { q.work(s, room) })
}

// close stops the work and waits for it. What still waits goes on at the next start.
func (q *inboundQueues) close() {
	q.mu.Lock()
	q.closed = true
	if q.stop != nil {
		q.stop()
	}
	q.mu.Unlock()
	q.running.Wait()
}

func (q *inboundQueues) work(s *Service, room matrix.RoomID) {
	for {
		select {
		case q.slots <- struct{}{}:
		case <-q.ctx.Done():
			return
		}
		s.workOff(q.ctx, room)
		<-q.slots
		q.mu.Lock()
		again := q.rooms[room] && q.ctx.Err() == nil
		if again {
			q.rooms[room] = false
		} else {
			delete(q.rooms, room)
		}
		q.mu.Unlock()
		if !again {
			return
		}
	}
}

// workOff takes up the waiting events of a room, those of lowest depth first, until none is left.
func (s *Service) workOff(ctx context.Context, room matrix.RoomID) {
	log := s.o.Log.With("room", room)
	for ctx.Err() == nil {
		waiting, err := s.o.DB.Inbound(ctx, room, lateBatch)
		if err != nil {
			log.Error("read events that wait", "err", err)
			return
		}
		if len(waiting) == 0 {
			return
		}
		for _, w := range waiting {
			err := s.takeWaiting(ctx, w.Origin, room, w.JSON)
			if ctx.Err() != nil {
				return // the row stays for the next start
			}
			if err != nil {
				log.Info("gave up an event that waited for others", "event", w.EventID, "server", w.Origin, "err", err)
			}
			if err := s.o.DB.DropInbound(ctx, room, w.EventID); err != nil {
				log.Error("drop an event that waited", "err", err)
				return
			}
		}
	}
}

// takeWaiting fills the gap before an event whose signatures were checked before it was put into its row.
func (s *Service) takeWaiting(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, raw []byte) error {
	ctx, cancel := context.WithTimeout(ctx, lateTimeout)
	defer cancel()
	r, err := s.Room(ctx, room)
	if err != nil {
		return err
	}
	if !r.Snapshot().Joined() {
		return errors.New("this server has left the room")
	}
	e, err := matrix.ParseEvent(raw, r.Version)
	if err != nil {
		return err
	}
	return s.takeLate(ctx, origin, r, e)
}

// resumeInbound takes up what waited when the server was last stopped.
func (s *Service) resumeInbound(ctx context.Context) error {
	rooms, err := s.o.DB.InboundRooms(ctx)
	for _, room := range rooms {
		s.foreign.inbound.kick(s, room)
	}
	return err
}
