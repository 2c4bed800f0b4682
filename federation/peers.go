package federation

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	firstBackoff = time.Second
	// storedFailures is from how many failures in a row on the back-off is written down: a hiccup costs no write.
	storedFailures = 3
	// heardAgain is how long after a failed attempt hearing from a server counts as a sign that it can be reached.
	heardAgain = 3 * time.Second
)

// ErrBackingOff is returned by requests to a server that has not answered lately.
var ErrBackingOff = errors.New("the server has not answered lately and is not being tried yet")

// peers is what we know of other servers: whether they answer and whether they sign. It is kept in memory and, as far
// as it must survive a restart, in the table destinations.
type peers struct {
	db         *storage.DB
	log        *slog.Logger
	now        func() time.Time
	maxBackoff time.Duration

	mu       sync.Mutex // guards all below
	byServer map[matrix.ServerName]*peer
	alive    func(matrix.ServerName) // called without the lock when a server may be tried again; may be nil
}

type peer struct {
	failures int
	retryAt  time.Time
	failedAt time.Time
	stored   bool // the table says that it is failing
	signs    bool
}

func loadPeers(ctx context.Context, o Options) (*peers, error) {
	p := &peers{db: o.DB, log: o.Log, now: o.Now, maxBackoff: o.Config.MaxBackoff, byServer: map[matrix.ServerName]*peer{}}
	known, err := o.DB.Destinations(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range known {
		if d.Failures > 0 || !d.SignsSince.IsZero() {
			p.byServer[d.Server] = &peer{failures: d.Failures, retryAt: d.RetryAt, stored: d.Failures > 0, signs: !d.SignsSince.IsZero()}
		}
	}
	return p, nil
}

// of is called with mu held.
func (p *peers) of(server matrix.ServerName) *peer {
	known := p.byServer[server]
	if known == nil {
		known = &peer{}
		p.byServer[server] = known
	}
	return known
}

// retryAt is when server may be tried again; zero or past for now.
func (p *peers) retryAt(server matrix.ServerName) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.byServer[server]; known != nil {
		return known.retryAt
	}
	return time.Time{}
}

func (p *peers) backingOff(server matrix.ServerName) bool {
	return p.now().Before(p.retryAt(server))
}

// failed notes that server did not answer. What fails while it is being given a rest does not count again. atLeast is
// how long the server itself asked us to wait.
func (p *peers) failed(ctx context.Context, server matrix.ServerName, atLeast time.Duration) {
	now := p.now()
	p.mu.Lock()
	known := p.of(server)
	if now.Before(known.retryAt) {
		p.mu.Unlock()
		return
	}
	known.failures++
	pause := min(firstBackoff<<min(known.failures-1, 20), p.maxBackoff)
	pause += time.Duration(rand.Int64N(int64(pause)/4 + 1))
	known.retryAt, known.failedAt = now.Add(max(pause, min(atLeast, p.maxBackoff))), now
	failures, retryAt := known.failures, known.retryAt
	store := failures >= storedFailures
	known.stored = known.stored || store
	p.mu.Unlock()
	if store {
		if failures == storedFailures {
			p.log.Info("server does not answer, backing off", "server", server, "until", retryAt)
		}
		p.store(ctx, server, retryAt, failures)
	}
}

// answered notes that server gave an answer, of whatever kind.
func (p *peers) answered(ctx context.Context, server matrix.ServerName) {
	p.mu.Lock()
	known := p.byServer[server]
	if known == nil || known.failures == 0 {
		p.mu.Unlock()
		return
	}
	stored := known.stored
	known.failures, known.retryAt, known.stored = 0, time.Time{}, false
	alive := p.alive
	p.mu.Unlock()
	if stored {
		p.log.Info("server answers again", "server", server)
		p.store(ctx, server, time.Time{}, 0)
	}
	if alive != nil {
		alive(server)
	}
}

// heard notes an authenticated request of server: it is up, so it is worth a try before the back-off ends.
func (p *peers) heard(server matrix.ServerName) {
	p.mu.Lock()
	known := p.byServer[server]
	if known == nil || known.failures == 0 || p.now().Sub(known.failedAt) < heardAgain {
		p.mu.Unlock()
		return
	}
	known.retryAt = time.Time{}
	alive := p.alive
	p.mu.Unlock()
	if alive != nil {
		alive(server)
	}
}

func (p *peers) store(ctx context.Context, server matrix.ServerName, retryAt time.Time, failures int) {
	// The request may be over or cancelled; what it taught us is not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := p.db.SetBackoff(ctx, server, retryAt, failures); err != nil && !errors.Is(err, storage.ErrClosed) {
		p.log.Error("store back-off", "server", server, "err", err)
	}
}

// signs reports whether server has ever made an HTTP Signature.
func (p *peers) signs(server matrix.ServerName) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.byServer[server]
	return known != nil && known.signs
}

// signed notes that server made a valid HTTP Signature. From the moment this returns nil it is known for good.
func (p *peers) signed(ctx context.Context, server matrix.ServerName) error {
	if p.signs(server) {
		return nil
	}
	if err := p.db.SetSigns(ctx, server, p.now()); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of(server).signs = true
	return nil
}

// onAlive has fn called, without any lock held, when a server that failed may be tried again.
func (p *peers) onAlive(fn func(matrix.ServerName)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alive = fn
}
