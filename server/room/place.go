package room

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// place is a place in the order of a room's history: just before the event with this depth and number.
type place storage.Place

var (
	firstPlace = place{0, 0}
	lastPlace  = place{math.MaxInt64, math.MaxInt64}
)

func before(e *storage.Event) place { return place{e.Depth(), e.Num} }
func after(e *storage.Event) place  { return place{e.Depth(), e.Num + 1} }

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(p.Depth, o.Depth), cmp.Compare(p.Num, o.Num))
}

// token is the place as clients get it: "t", the depth, "-", the number.
func (p place) token() string { return fmt.Sprintf("t%d-%d", p.Depth, p.Num) }

// PrevToken is the token for GET /messages that goes on backwards from just before e.
func PrevToken(e *storage.Event) string { return before(e).token() }

// parseToken reads a token of ours, or a stream position from one of /sync; one of the two is set.
func parseToken(token string) (at *place, pos int64, err error) {
	bad := matrix.InvalidParam("%.64q is not a token that this server gave out", token)
	if token == "" {
		return nil, 0, bad
	}
	switch body := token[1:]; token[0] {
	case 't':
		depth, num, ok := strings.Cut(body, "-")
		d, err := strconv.ParseInt(depth, 10, 64)
		n, err2 := strconv.ParseInt(num, 10, 64)
		if !ok || err != nil || err2 != nil {
			return nil, 0, bad
		}
		return &place{d, n}, 0, nil
	case 's':
		digits, _, _ := strings.Cut(body, "_")
		pos, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || pos < 0 {
			return nil, 0, bad
		}
		return nil, pos, nil
	}
	return nil, 0, bad
}

// place reads a token. An empty one is the end of the room's history, or with atEnd false its beginning.
func (s *Service) place(ctx context.Context, room matrix.RoomID, token string, atEnd bool) (place, error) {
	if token == "" {
		if atEnd {
			return lastPlace, nil
		}
		return firstPlace, nil
	}
	at, pos, err := parseToken(token)
	if err != nil {
		return place{}, err
	}
	if at != nil {
		return *at, nil
	}
	return s.placeOfPos(ctx, room, pos)
}

// placeEvents is how many events of the stream are looked at for the one that reaches furthest: of several branches, the newest may be a short one.
const placeEvents = 50

// placeOfPos is the place after the events up to a stream position.
func (s *Service) placeOfPos(ctx context.Context, room matrix.RoomID, pos int64) (place, error) {
	r, err := s.Room(ctx, room)
	if err != nil {
		return place{}, err
	}
	at := firstPlace
	if snap := r.Snapshot(); pos >= snap.Pos && len(snap.Tip) > 0 {
		at = place{snap.Depth + 1, 0}
	}
	t, err := s.Timeline(ctx, room, 0, pos, placeEvents)
	if err != nil {
		return place{}, err
	}
	for _, e := range t.Events {
		if p := after(e); p.compare(at) > 0 {
			at = p
		}
	}
	if at != firstPlace {
		return at, nil
	}
	// Nothing came to us before that position, as where we came into the room: what lies behind it is the history before what came next.
	next, err := s.o.DB.EventsFromStream(ctx, r.Num, pos, math.MaxInt64, 1)
	if err != nil || len(next) == 0 {
		return at, err
	}
	return before(next[0]), nil
}
