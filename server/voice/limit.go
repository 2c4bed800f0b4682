package voice

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"

	"parley.im/parley/server/matrix"
)

// LimitType is the type of the state event (empty state key) by which a room says how long its voice messages may be:
// {"max_duration": 60000}, in milliseconds. It cannot allow more than the server does. What cannot be read is no limit.
const LimitType = "im.parley.voice.limit"

// limit is the longest that a voice message may be; 0 is no limit.
type limit struct {
	longest time.Duration
	room    bool // it is the room that sets it
}

// check returns M_TOO_LARGE for what lasts longer.
func (l limit) check(d time.Duration) error {
	if l.longest <= 0 || d <= l.longest {
		return nil
	}
	where := "on this server"
	if l.room {
		where = "in this room"
	}
	return matrix.TooLarge("the voice message lasts %s seconds; at most %s are allowed %s", seconds(d), seconds(l.longest), where)
}

// seconds writes a time to the millisecond, upwards, so that what is too long looks so.
func seconds(d time.Duration) string {
	return strconv.FormatFloat(math.Ceil(float64(d)/float64(time.Millisecond))/1000, 'f', -1, 64)
}

// limit finds what holds for a voice message of sender. in is false if the sender is not in the room: then nothing is to be
// told of it.
func (s *Service) limit(ctx context.Context, id matrix.RoomID, sender matrix.UserID) (l limit, in bool, err error) {
	l = limit{longest: s.Config.MaxDuration}
	if s.Rooms == nil {
		return l, true, nil
	}
	r, err := s.Rooms.Room(ctx, id)
	if matrix.ErrorCode(err) == "M_NOT_FOUND" {
		return l, false, nil
	}
	if err != nil {
		return l, false, fmt.Errorf("find room: %w", err)
	}
	snapshot := r.Snapshot()
	if _, in := snapshot.Local[sender]; !in {
		return l, false, nil
	}
	e, err := s.Rooms.StateAt(ctx, id, snapshot.Root, LimitType, "")
	if err != nil || e == nil {
		return l, true, err
	}
	var said struct {
		MaxDuration int64 `json:"max_duration"`
	}
	if json.Unmarshal(e.Content(), &said) != nil || said.MaxDuration <= 0 || said.MaxDuration > maxPosition {
		return l, true, nil
	}
	if d := time.Duration(said.MaxDuration) * time.Millisecond; l.longest <= 0 || d < l.longest {
		l = limit{d, true}
	}
	return l, true, nil
}
