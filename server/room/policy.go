package room

import (
	"context"
	"errors"
	"net/http"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// A room may name a policy server, which is asked to sign every event. What it does not sign is not sent by us, and soft-failed if it comes
// from others. Nobody is asked while a room is being worked on: a function that meets an event without a signature is taken back, the policy
// server is asked, and the function is run again, with the answer at hand.
// Spec v1.19 server-server-api/#policy-servers

const (
	// policyTimeout bounds how long a policy server is waited for.
	policyTimeout = 10 * time.Second
	// policyWorkers is how many events one policy server is asked about at the same time on behalf of one request.
	policyWorkers = 8
	// maxPolicyAsks is how many events one function may have signed one after the other.
	maxPolicyAsks = 20
	// keepVerdict is how long an answer is remembered, policyPause how long a policy server that did not answer is left alone.
	keepVerdict, policyPause = 5 * time.Minute, 30 * time.Second
)

// policyKey is what a policy server was asked: another key makes it another question.
type policyKey struct {
	event  matrix.EventID
	policy string // PolicyServer.Name
}

// policyVerdict is the signed event, or why it was not signed.
type policyVerdict struct {
	signed *matrix.Event
	err    error
}

// unsigned says that the policy server has to be asked about an event.
type unsigned struct {
	event  *matrix.Event
	policy *matrix.PolicyServer
}

func (e *unsigned) Error() string { return "the event needs a signature of the policy server" }

// policyServer is the policy server that the room is using; nil if it uses none.
// Spec v1.19 server-server-api/#determining-if-a-policy-server-is-enabled-in-a-room
func (s *Snapshot) policyServer() *matrix.PolicyServer {
	if s.Policy == nil || s.Servers[s.Policy.Server] == 0 {
		return nil
	}
	return s.Policy
}

// recommended gives the event with the signature of the room's policy server, as it is if it needs none. refused is why the policy server
// does not sign it, meant for clients; err is *unsigned if it has not been asked.
func (u *update) recommended(e *matrix.Event) (signed *matrix.Event, refused, err error) {
	p := u.snap.policyServer()
	if p == nil || !p.Signs(e) || p.Recommends(e) {
		return e, nil, nil
	}
	v, ok := u.s.foreign.policies.get(policyKey{e.ID(), p.Name()}, u.s.o.Now())
	if !ok {
		return nil, nil, &unsigned{e, p}
	}
	return v.signed, v.err, nil
}

// isRecommended reports whether an event has the signature of the policy server, or needs none.
func (u *update) isRecommended(e *matrix.Event) bool {
	p := u.snap.policyServer()
	return p == nil || !p.Signs(e) || p.Recommends(e)
}

// appendOwn appends an event that [update.build] has made, signed by the policy server. The error is that server's refusal, for clients.
func (u *update) appendOwn(in entry) (*storage.Event, error) {
	signed, refused, err := u.recommended(in.event)
	if err != nil || refused != nil {
		return nil, errors.Join(err, refused)
	}
	if signed != in.event || len(u.asked) > 0 { // it may not follow on the tip any more
		in.event = signed
		if in.before, in.told, err = u.stateBefore(signed, arrival{}); err != nil {
			return nil, err
		}
	}
	return u.append(in)
}

// builtBefore finds the event that was built of b the last time; nil if it was not.
func (u *update) builtBefore(b *matrix.Builder) *matrix.Event {
	for _, e := range u.asked {
		key, isState := e.StateKey()
		if e.Type() == b.Type && e.Sender() == b.Sender && isState == (b.StateKey != nil) && (!isState || key == *b.StateKey) &&
			e.Redacts() == b.Redacts && sameJSON(e.Content(), b.Content) {
			return e
		}
	}
	return nil
}

// runSigned runs fn, and asks the policy server when fn needs that.
func (s *Service) runSigned(ctx context.Context, r *Room, fn func(u *update) error) error {
	var asked []*matrix.Event
	for {
		err := s.runJob(r, &job{ctx: ctx, done: make(chan bool, 1), fn: func(u *update) error {
			u.asked = asked
			defer func() { u.asked = nil }()
			return fn(u)
		}})
		var missing *unsigned
		if !errors.As(err, &missing) {
			return err
		}
		if len(asked) == maxPolicyAsks {
			return matrix.LimitExceeded(policyPause)
		}
		v := s.askPolicy(ctx, missing.policy, missing.event)
		if err := ctx.Err(); err != nil {
			return err
		}
		if v.err == nil {
			missing.event = v.signed
		}
		asked = append(asked, missing.event)
	}
}

// askPolicies asks the room's policy server about those of the events that lack its signature.
func (s *Service) askPolicies(ctx context.Context, room matrix.RoomID, events []*matrix.Event) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return // whoever takes the events in finds out
	}
	p := r.Snapshot().policyServer()
	if p == nil {
		return
	}
	parallel(len(events), policyWorkers, func(i int) {
		if e := events[i]; p.Signs(e) && !p.Recommends(e) {
			if _, known := s.foreign.policies.get(policyKey{e.ID(), p.Name()}, s.o.Now()); !known {
				s.askPolicy(ctx, p, e)
			}
		}
	})
}

// askPolicy asks a policy server to sign an event, and remembers what it said, unless ctx ended meanwhile.
func (s *Service) askPolicy(ctx context.Context, p *matrix.PolicyServer, e *matrix.Event) (v policyVerdict) {
	defer func() {
		if ctx.Err() != nil {
			return // nobody has answered: who asked has gone
		}
		expires := s.o.Now().Add(keepVerdict)
		if v.err != nil {
			expires = s.o.Now().Add(policyPause)
		}
		s.foreign.policies.put(policyKey{e.ID(), p.Name()}, v, expires)
	}()
	silent := matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the policy server %s, which must agree to what is sent to this room, does not answer", p.Server)
	switch _, down := s.foreign.noPolicy.get(p.Server, s.o.Now()); {
	case p.Server == s.o.ServerName || s.o.Remote == nil:
		return policyVerdict{err: matrix.Forbidden("the room names %s as its policy server, which this server cannot ask", p.Server)}
	case down:
		return policyVerdict{err: silent}
	}
	asking, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	answer, err := s.o.Remote.AskPolicyServer(asking, p.Server, e.JSON())
	var refused *matrix.Error
	switch {
	case errors.As(err, &refused) && refused.Status < 500:
		s.o.Log.Info("a policy server refuses an event", "room", e.RoomID(), "event", e.ID(), "server", p.Server, "err", err)
		return policyVerdict{err: refused}
	case errors.Is(err, ErrNotPermitted):
		return policyVerdict{err: matrix.Forbidden("this server is not allowed to talk to %s, the policy server of the room", p.Server)}
	case err != nil:
		s.o.Log.Warn("a policy server does not answer", "room", e.RoomID(), "server", p.Server, "err", err)
		if ctx.Err() == nil {
			s.foreign.noPolicy.put(p.Server, struct{}{}, s.o.Now().Add(policyPause))
		}
		return policyVerdict{err: silent}
	}
	if v.signed, err = p.Accept(e, answer); err != nil {
		s.o.Log.Info("a policy server answers without a valid signature", "room", e.RoomID(), "event", e.ID(), "server", p.Server, "err", err)
		v.err = matrix.Forbidden("the policy server %s has not signed the event as the room wants it", p.Server)
	}
	return v
}
