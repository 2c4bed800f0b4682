package api

import (
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"parley.im/parley/server/matrix"
)

// How long, and how many, requests with a transaction ID are remembered.
const (
	rememberRequests = 30 * time.Minute
	maxRemembered    = 100_000
)

// requestKey is a request with a transaction ID: it is the same if device, endpoint and transaction ID are.
// Spec v1.19 client-server-api/#transaction-identifiers
type requestKey struct {
	user    matrix.UserID
	device  matrix.DeviceID
	request string
}

// doneOnce is a request that is being done, or has been. Sending events has an idempotence of its own, that outlives
// a restart (see room.Send).
type doneOnce struct {
	mu   sync.Mutex
	done bool // guarded by mu, which is held while the request runs
}

func newRemembered() *otter.Cache[requestKey, *doneOnce] {
	return otter.Must(&otter.Options[requestKey, *doneOnce]{
		MaximumSize:      maxRemembered,
		ExpiryCalculator: otter.ExpiryWriting[requestKey, *doneOnce](rememberRequests),
	})
}

// once runs do and answers {}, but only answers if the device has made the same request before with success.
func (c *call) once(request string, do func() error) error {
	key := requestKey{c.userID(), c.deviceID(), request}
	r, _ := c.a.remembered.SetIfAbsent(key, &doneOnce{})
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.done {
		if err := do(); err != nil {
			return err
		}
		r.done = true
	}
	return c.done()
}
