package federation

import (
	"crypto/sha256"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
)

const (
	// replayWindow is how long a signature could be used again: what checkTime leaves, from both sides.
	replayWindow = signatureLifetime + 2*clockSkew
	// maxReplayEntries bounds the memory, at about 60 bytes each; no peer may take more than its share.
	maxReplayEntries   = 400_000
	maxReplayPerServer = maxReplayEntries / 4
)

// replayCache knows the signatures of the last replayWindow. Each generation holds what came within one window; the
// one before it is still asked, so an entry is kept for one to two windows.
type replayCache struct {
	mu            sync.Mutex // guards all below
	current, last map[[16]byte]struct{}
	perServer     map[matrix.ServerName]int
	turned        time.Time
}

// firstUse notes a verified signature. It is false if the same one was used before, or if there have been so many
// that we could not know: it never forgets for want of space.
func (c *replayCache) firstUse(sig *signature, now time.Time) bool {
	sum := sha256.Sum256([]byte(signatureKeyID(sig.Server, sig.KeyID) + "|" + sig.raw))
	key := [16]byte(sum[:16])
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || now.Sub(c.turned) > replayWindow {
		c.last, c.current = c.current, map[[16]byte]struct{}{}
		c.perServer = map[matrix.ServerName]int{}
		c.turned = now
	}
	if _, seen := c.current[key]; seen {
		return false
	}
	if _, seen := c.last[key]; seen {
		return false
	}
	if len(c.current) >= maxReplayEntries || c.perServer[sig.Server] >= maxReplayPerServer {
		return false
	}
	c.current[key] = struct{}{}
	c.perServer[sig.Server]++
	return true
}
