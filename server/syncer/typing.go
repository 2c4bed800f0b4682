package syncer

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"parley.im/parley/server/matrix"
)

const (
	defaultTyping = 30 * time.Second
	// maxTypists bounds how many users of one room are remembered as typing.
	maxTypists = 200
)

// typists is who types in one room.
type typists struct {
	until map[matrix.UserID]time.Time
	// list is until's keys in their order of beginning; replaced, never changed.
	list []matrix.UserID
	eph  int64 // when list changed last
}

// SetTyping says that user types in room, for at most timeout, or no longer. 0 means 30 s.
// Error: M_FORBIDDEN (not joined).
func (s *Service) SetTyping(ctx context.Context, user matrix.UserID, room matrix.RoomID, typing bool, timeout time.Duration) error {
	if err := s.mustBeJoined(ctx, user, room); err != nil {
		return err
	}
	if timeout <= 0 {
		timeout = defaultTyping
	}
	if s.setTyping(user, room, typing, min(timeout, s.o.Config.MaxTyping)) {
		s.tellTyping(user, room, typing)
	}
	return nil
}

func (s *Service) tellTyping(user matrix.UserID, room matrix.RoomID, typing bool) {
	content, err := json.Marshal(typingEDU{Room: room, User: user, Typing: typing})
	if err == nil {
		s.o.OnEDU(EDU{Type: "m.typing", Room: room, User: user, Content: content})
	}
}

type typingEDU struct {
	Room   matrix.RoomID `json:"room_id"`
	User   matrix.UserID `json:"user_id"`
	Typing bool          `json:"typing"`
}

// ReceiveTyping takes an m.typing EDU: {"room_id", "user_id", "typing"}. What is not origin's to say is passed over.
// Spec v1.19 server-server-api/#typing-notifications
func (s *Service) ReceiveTyping(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var edu typingEDU
	if err := json.Unmarshal(content, &edu); err != nil {
		return matrix.BadJSON("m.typing: %v", err)
	}
	if _, err := matrix.ParseUserID(string(edu.User)); err != nil || edu.User.Server() != origin {
		return nil
	}
	if joined, err := s.isJoined(ctx, edu.User, edu.Room); err != nil || !joined {
		return err
	}
	s.setTyping(edu.User, edu.Room, edu.Typing, defaultTyping)
	return nil
}

// setTyping reports whether it changed who types.
func (s *Service) setTyping(user matrix.UserID, room matrix.RoomID, typing bool, timeout time.Duration) bool {
	s.mu.Lock()
	t := s.typing[room]
	if t == nil {
		if !typing {
			s.mu.Unlock()
			return false
		}
		t = &typists{until: map[matrix.UserID]time.Time{}}
		s.typing[room] = t
	}
	_, was := t.until[user]
	switch {
	case typing && (was || len(t.until) < maxTypists):
		t.until[user] = s.now().Add(timeout)
	case !typing:
		delete(t.until, user)
	}
	_, is := t.until[user]
	if was != is {
		t.relist(user, is)
		s.eph++
		t.eph = s.eph
	}
	var wake []chan struct{}
	if was != is {
		wake = s.wakeRoom(room)
	}
	s.mu.Unlock()
	closeAll(wake)
	return was != is
}

func (t *typists) relist(user matrix.UserID, is bool) {
	list := slices.DeleteFunc(slices.Clone(t.list), func(u matrix.UserID) bool { return u == user })
	if is {
		list = append(list, user)
	}
	t.list = list
}

// endTyping ends what has timed out. A room in which nobody types is kept for as long as a client may not know it yet.
func (s *Service) endTyping() {
	now := s.now()
	type ended struct {
		user matrix.UserID
		room matrix.RoomID
	}
	var over []ended
	s.mu.RLock()
	for room, t := range s.typing {
		for user, until := range t.until {
			if !now.Before(until) {
				over = append(over, ended{user, room})
			}
		}
	}
	s.mu.RUnlock()
	for _, e := range over {
		if s.setTyping(e.user, e.room, false, 0) && e.user.Server() == s.o.ServerName {
			s.tellTyping(e.user, e.room, false)
		}
	}
}

// appendTyping writes the m.typing event of the list.
func appendTyping(b []byte, list []matrix.UserID) []byte {
	b = append(b, `{"type":"m.typing","content":{"user_ids":[`...)
	for i, u := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, string(u))
	}
	return append(b, `]}}`...)
}
