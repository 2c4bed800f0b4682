package api

import (
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/time/rate"

	"parley.im/parley/server/matrix"
)

// action is a kind of request with a rate limit of its own.
type action uint8

const (
	unlimited action = iota
	limitMessage
	limitLoginAddress
	limitLoginAccount
	limitRegistration
	limitJoin
	limitInvite
	limitCreateRoom
	limitMedia
	limitLive
	limitKeys
	limitSearch
	limitReport
	limitAccount
	limitOther
	actionCount
)

// maxBuckets is how many token buckets are kept; who is forgotten starts with a full one.
const maxBuckets = 100_000

// limiter holds a token bucket for each action and user or client address. The zero value limits nothing.
type limiter struct {
	rates   [actionCount]Rate
	buckets *otter.Cache[bucketKey, *rate.Limiter]
	now     func() time.Time
}

type bucketKey struct {
	action action
	who    string
}

func newLimiter(cfg RateLimits, now func() time.Time) *limiter {
	if !cfg.Enabled {
		return &limiter{}
	}
	l := &limiter{now: now, rates: [actionCount]Rate{
		limitMessage:      cfg.Message,
		limitLoginAddress: cfg.LoginAddress,
		limitLoginAccount: cfg.LoginAccount,
		limitRegistration: cfg.Registration,
		limitJoin:         cfg.Join,
		limitInvite:       cfg.Invite,
		limitCreateRoom:   cfg.CreateRoom,
		limitMedia:        cfg.Media,
		limitLive:         cfg.Live,
		limitKeys:         cfg.Keys,
		limitSearch:       cfg.Search,
		limitReport:       cfg.Report,
		limitAccount:      cfg.Account,
		limitOther:        cfg.Other,
	}}
	l.buckets = otter.Must(&otter.Options[bucketKey, *rate.Limiter]{MaximumSize: maxBuckets})
	return l
}

// allow takes one token from who's bucket. The error is M_LIMIT_EXCEEDED with the time until there is one again.
func (l *limiter) allow(a action, who string) error {
	r := l.rates[a]
	if l.buckets == nil || r.PerSecond <= 0 {
		return nil
	}
	key := bucketKey{a, who}
	bucket, ok := l.buckets.GetIfPresent(key)
	if !ok {
		bucket, _ = l.buckets.SetIfAbsent(key, rate.NewLimiter(rate.Limit(r.PerSecond), max(r.Burst, 1)))
	}
	now := l.now()
	reservation := bucket.ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait <= 0 {
		return nil
	}
	reservation.CancelAt(now)
	return matrix.LimitExceeded(wait)
}
