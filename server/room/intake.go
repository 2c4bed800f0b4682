package room

import (
	"encoding/json"
	"fmt"
	"runtime"
	"sync"

	"parley.im/parley/server/matrix"
)

// EventSink takes the events of a large answer as they come in, so that the answer is never in memory as a whole. inState tells those of
// "state" from those of "auth_chain". raw may be reused afterwards. An error is the end of the request, which answers it.
type EventSink func(inState bool, raw json.RawMessage) error

// intakeBytes is about how much JSON is handed over to be parsed at a time.
const intakeBytes = 64 << 10

// intake parses the events of a large answer on all cores while they come in. end must be called.
type intake struct {
	version *matrix.RoomVersion
	room    matrix.RoomID
	seen    [2]int // events of the chain and of the state
	fill    [2]*rawEvents
	parsed  [2][]*rawEvents // in their order
	work    chan *rawEvents
	spare   chan []byte
	running sync.WaitGroup
}

// rawEvents are events one after the other, and then parsed.
type rawEvents struct {
	raw    []byte
	ends   []int
	events []*matrix.Event // those that are valid
}

func newIntake(version *matrix.RoomVersion, room matrix.RoomID) *intake {
	workers := runtime.GOMAXPROCS(0)
	in := &intake{version: version, room: room, work: make(chan *rawEvents, workers), spare: make(chan []byte, 2*workers)}
	for range workers {
		in.running.Go(in.parse)
	}
	return in
}

// take is the EventSink.
func (in *intake) take(inState bool, raw json.RawMessage) error {
	list := count(inState)
	if in.seen[list]++; in.seen[list] > maxStateEvents {
		return fmt.Errorf("a state or its auth chain has more than %d events", maxStateEvents)
	}
	r := in.fill[list]
	if r == nil {
		r = &rawEvents{}
		select {
		case r.raw = <-in.spare:
		default:
		}
		in.fill[list] = r
		in.parsed[list] = append(in.parsed[list], r)
	}
	r.raw = append(r.raw, raw...)
	r.ends = append(r.ends, len(r.raw))
	if len(r.raw) >= intakeBytes {
		in.fill[list] = nil
		in.work <- r
	}
	return nil
}

func (in *intake) parse() {
	for r := range in.work {
		r.events = make([]*matrix.Event, 0, len(r.ends))
		from := 0
		for _, end := range r.ends {
			// What is not a valid event of the room is left out.
			if e, err := matrix.ParseEvent(r.raw[from:end], in.version); err == nil && e.RoomID() == in.room {
				r.events = append(r.events, e)
			}
			from = end
		}
		select {
		case in.spare <- r.raw[:0]:
		default:
		}
		r.raw, r.ends = nil, nil
	}
}

// end gives the events of the state and those that are only in the auth chain, each once. Signatures are not checked. It may be called several times;
// later calls give nothing.
func (in *intake) end() (state, chain []*matrix.Event) {
	if in.work == nil {
		return nil, nil
	}
	for _, r := range in.fill {
		if r != nil {
			in.work <- r
		}
	}
	close(in.work)
	in.running.Wait()
	in.work = nil
	seen := make(map[matrix.EventID]bool, in.seen[0]+in.seen[1])
	distinct := func(parsed []*rawEvents) (all []*matrix.Event) {
		for _, r := range parsed {
			for _, e := range r.events {
				if !seen[e.ID()] {
					seen[e.ID()] = true
					all = append(all, e)
				}
			}
		}
		return all
	}
	state = distinct(in.parsed[1])
	chain = distinct(in.parsed[0])
	in.parsed = [2][]*rawEvents{}
	return state, chain
}
