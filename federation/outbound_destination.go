package federation

import (
	"context"
	"errors"
	"sort"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/syncer"
	"parley.im/parley/storage"
)

// destination is one server we send to. While there is something to send, one goroutine works for it.
type destination struct {
	s      *Sender
	server matrix.ServerName

	mu sync.Mutex // guards all below; not held while sending
	// pos: all that concerns the server up to here has been delivered, but for what is in pending.
	pos    int64
	stored int64 // pos as it is written down
	// behind: what is to be delivered begins at pos and is to be read from the database. catching: that is being done.
	behind    bool
	catching  bool
	pending   []*storage.CommittedEvent // in stream order, all after pos
	ephemeral []edu
	keys      []string // of ephemeral: one with the same key replaces it; "" for none
	outbox    bool     // rows may wait
	working   bool
	refused   int           // how many transactions in a row the server answered with an error
	news      chan struct{} // wakes the worker from its back-off
}

// addEvent is called by the router, in stream order.
func (d *destination) addEvent(e *storage.CommittedEvent) {
	d.mu.Lock()
	switch {
	case d.behind, e.Pos <= d.pos: // read from the database in its turn; delivered
	case len(d.pending) >= maxPending:
		d.behind, d.pending = true, nil
	default:
		d.pending = append(d.pending, e)
	}
	d.mu.Unlock()
	d.wake()
}

func (d *destination) addOutbox() {
	d.mu.Lock()
	d.outbox = true
	d.mu.Unlock()
	d.wake()
}

func (d *destination) addEphemeral(e syncer.EDU) {
	if d.s.c.peers.backingOff(d.server) {
		return
	}
	key := ""
	if e.Type == "m.typing" || e.Type == "m.presence" {
		key = e.Type + "\x00" + string(e.Room) + "\x00" + string(e.User)
	}
	d.mu.Lock()
	placed := false
	for i := range d.keys {
		if key != "" && d.keys[i] == key {
			d.ephemeral[i] = edu{e.Type, e.Content}
			placed = true
		}
	}
	if !placed {
		d.ephemeral, d.keys = append(d.ephemeral, edu{e.Type, e.Content}), append(d.keys, key)
	}
	if over := len(d.ephemeral) - maxEphemeral; over > 0 {
		d.dropEphemeral(over)
	}
	d.mu.Unlock()
	d.wake()
}

// dropEphemeral is called with mu held.
func (d *destination) dropEphemeral(n int) {
	d.ephemeral = append([]edu(nil), d.ephemeral[n:]...)
	d.keys = append([]string(nil), d.keys[n:]...)
}

// wake starts the worker or ends its back-off.
func (d *destination) wake() {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.news == nil {
		d.news = make(chan struct{}, 1)
	}
	if d.working {
		select {
		case d.news <- struct{}{}:
		default:
		}
		return
	}
	if d.s.closed || !d.hasWork() {
		return
	}
	d.working = true
	d.s.workers.Add(1)
	go d.work(d.s.ctx)
}

// hasWork is called with mu held.
func (d *destination) hasWork() bool {
	return d.behind || d.outbox || len(d.pending) > 0 || len(d.ephemeral) > 0
}

// work sends until nothing is left or ctx ends.
func (d *destination) work(ctx context.Context) {
	defer d.s.workers.Done()
	for {
		d.mu.Lock()
		if ctx.Err() != nil || !d.hasWork() {
			d.working = false
			d.mu.Unlock()
			return
		}
		behind := d.behind
		d.mu.Unlock()
		if !d.ready(ctx) {
			continue
		}
		var err error
		if behind {
			err = d.catchUp(ctx)
		} else {
			err = d.deliver(ctx)
		}
		if err != nil && ctx.Err() == nil {
			d.failed(ctx, err)
		}
	}
}

// ready waits for the end of the back-off, or a sign of life, and reports whether it is over.
func (d *destination) ready(ctx context.Context) bool {
	wait := d.s.c.peers.retryAt(d.server).Sub(d.s.c.o.Now())
	if wait <= 0 {
		return true
	}
	d.mu.Lock()
	d.dropEphemeral(len(d.ephemeral))
	d.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-d.news: // maybe it is heard of again; if not, this waits on
	case <-ctx.Done():
	}
	return false
}

// failed makes sure that there is a pause: the client notes failures of the network, but a server may as well refuse.
func (d *destination) failed(ctx context.Context, err error) {
	d.s.log.Debug("deliver", "server", d.server, "err", err)
	if errors.Is(err, ErrBackingOff) {
		return
	}
	if errors.Is(err, storage.ErrClosed) {
		<-ctx.Done()
		return
	}
	d.mu.Lock()
	d.refused++
	pause := firstBackoff << min(d.refused, 20)
	d.mu.Unlock()
	if refusal := new(matrix.Error); errors.As(err, &refusal) {
		pause = max(pause, refusal.RetryAfter)
		d.s.log.Info("another server refused a transaction", "server", d.server, "err", err)
	}
	d.s.c.peers.failed(ctx, d.server, pause)
	if err := d.s.db.TrimOutbox(ctx, d.server, maxOutbox); err != nil && ctx.Err() == nil {
		d.s.log.Error("trim the outbox", "server", d.server, "err", err)
	}
}

// deliver sends the next transaction of what waits.
func (d *destination) deliver(ctx context.Context) error {
	t, err := d.next(ctx)
	if err != nil || t == nil {
		return err
	}
	if err := d.s.send(ctx, d.server, t.body); err != nil {
		return err
	}
	d.mu.Lock()
	d.refused = 0
	if !d.behind { // if the memory overflowed meanwhile, it is all read from the database
		if d.pending = d.pending[t.events:]; len(d.pending) == 0 {
			d.pending = nil
		}
		d.pos = max(d.pos, t.upTo)
	}
	d.mu.Unlock()
	// Also when we are about to stop: what is not deleted is delivered twice.
	return d.s.db.DeleteOutbox(context.WithoutCancel(ctx), d.server, t.outbox)
}

// next puts together a transaction; nil if there is nothing to send.
func (d *destination) next(ctx context.Context) (*transaction, error) {
	d.mu.Lock()
	readOutbox := d.outbox
	d.outbox = false
	d.mu.Unlock()
	t := &transaction{}
	var pdus [][]byte
	var edus []edu
	size := 0
	if readOutbox {
		rows, err := d.s.db.Outbox(ctx, d.server, maxEDUs)
		if err != nil {
			d.addOutbox()
			return nil, err
		}
		for _, row := range rows {
			if size += len(row.Content); len(pdus) == maxPDUs || size > maxTransactionBytes && len(t.outbox) > 0 {
				break
			}
			t.outbox = append(t.outbox, row.Pos)
			if row.Type == relayedPDU {
				pdus = append(pdus, row.Content)
			} else {
				edus = append(edus, edu{row.Type, row.Content})
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(t.outbox) > 0 {
		d.outbox = true // there may be more, and these are still there if sending fails
	}
	if !d.behind {
		for _, e := range d.pending {
			if size += len(e.Event.JSON()); len(pdus) == maxPDUs || size > maxTransactionBytes && len(pdus) > 0 {
				break
			}
			pdus = append(pdus, e.Event.JSON())
			t.events++
			t.upTo = e.Pos
		}
	}
	// Taken out for good: what is short-lived is sent once.
	n := min(len(d.ephemeral), maxEDUs-len(edus))
	edus = append(edus, d.ephemeral[:n]...)
	d.dropEphemeral(n)
	if len(pdus) == 0 && len(edus) == 0 {
		return nil, nil
	}
	t.body = d.s.transactionBody(pdus, edus)
	return t, nil
}

// catchUp sends a server that was away the newest events of our users in the rooms it is in, up to now. What comes from
// the bell meanwhile waits in pending.
func (d *destination) catchUp(ctx context.Context) error {
	d.mu.Lock()
	from := d.pos
	d.behind, d.catching = false, true
	d.mu.Unlock()
	upTo := d.s.db.Position() // after behind was unset: what the router dropped until then is before it
	err := d.sendMissed(ctx, from, upTo)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.catching = false
	if err != nil {
		d.behind, d.pending = true, nil
		return err
	}
	d.refused = 0
	d.pos = max(d.pos, upTo)
	for len(d.pending) > 0 && d.pending[0].Pos <= upTo {
		d.pending = d.pending[1:]
	}
	return nil
}

func (d *destination) sendMissed(ctx context.Context, from, upTo int64) error {
	events, err := d.missed(ctx, from, upTo)
	if err != nil {
		return err
	}
	for len(events) > 0 {
		n, size := 0, 0
		var pdus [][]byte
		for _, e := range events {
			if size += len(e.JSON()); n == maxPDUs || size > maxTransactionBytes && n > 0 {
				break
			}
			pdus = append(pdus, e.JSON())
			n++
		}
		if err := d.s.send(ctx, d.server, d.s.transactionBody(pdus, nil)); err != nil {
			return err
		}
		last := events[n-1].Pos
		events = events[n:]
		d.mu.Lock()
		d.pos = max(d.pos, last)
		d.mu.Unlock()
	}
	return nil
}

// missed lists what server is to be sent of what happened between two positions, in stream order.
func (d *destination) missed(ctx context.Context, from, upTo int64) ([]*storage.Event, error) {
	changed, err := d.s.db.RoomsForServer(ctx, d.server, from)
	if err != nil {
		return nil, err
	}
	var missed []*storage.Event
	for _, id := range changed {
		timeline, err := d.s.rooms.Timeline(ctx, id, from, upTo, catchUpPerRoom)
		if err != nil {
			return nil, err
		}
		var ours []*storage.Event
		for _, e := range timeline.Events {
			if e.Sender().Server() == d.s.c.o.Server {
				ours = append(ours, e)
			}
		}
		if len(ours) == 0 {
			continue
		}
		// The server may have come into the room meanwhile: it is not sent what it may not see.
		visible, err := d.s.rooms.VisibleToServer(ctx, d.server, ours)
		if err != nil {
			return nil, err
		}
		for i, e := range ours {
			if visible[i] {
				missed = append(missed, e)
			}
		}
	}
	sort.Slice(missed, func(i, j int) bool { return missed[i].Pos < missed[j].Pos })
	return missed, nil
}
