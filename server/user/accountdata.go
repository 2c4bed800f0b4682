package user

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Limits of names that clients choose.
const (
	maxTypeBytes   = 255
	maxTagBytes    = 255
	maxTags        = 100
	maxFilterBytes = 64 * 1024
	maxFilters     = 10000
)

// AccountData returns the content; room "" is global. Error: M_NOT_FOUND.
// Global m.push_rules belongs to server/push, which adds the defaults.
func (u *Users) AccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string) (json.RawMessage, error) {
	if checkName("the type", typ, maxTypeBytes) != nil {
		return nil, matrix.NotFound("there is no account data of this type")
	}
	content, err := u.db.AccountData(ctx, user, room, typ)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, matrix.NotFound("there is no account data of this type")
	}
	return content, err
}

// SetAccountData replaces the content and tells the user's syncs. room "" is global.
// Errors: M_BAD_JSON (no object), M_TOO_LARGE, M_INVALID_PARAM (type), 405 M_BAD_JSON for m.fully_read of a room and
// global m.push_rules, which have endpoints of their own.
func (u *Users) SetAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, content json.RawMessage) error {
	if room != "" && typ == "m.fully_read" || room == "" && typ == "m.push_rules" {
		return matrix.BadJSON("account data of the type %s cannot be set here", typ).WithStatus(405)
	}
	if err := checkName("the type", typ, maxTypeBytes); err != nil {
		return err
	}
	if len(content) > u.cfg.MaxAccountDataBytes {
		return matrix.TooLarge("account data must not be larger than %d bytes", u.cfg.MaxAccountDataBytes)
	}
	content, err := compactObject(content)
	if err != nil {
		return err
	}
	return u.db.SetAccountData(ctx, user, room, typ, content)
}

// SetFullyRead sets m.fully_read of a room, which other account data calls refuse. The caller has checked the event.
func (u *Users) SetFullyRead(ctx context.Context, user matrix.UserID, room matrix.RoomID, event matrix.EventID) error {
	content, err := json.Marshal(map[string]matrix.EventID{"event_id": event})
	if err != nil {
		return err
	}
	return u.db.SetAccountData(ctx, user, room, "m.fully_read", content)
}

// compactObject checks that content is a JSON object and takes out white space.
func compactObject(content json.RawMessage) (json.RawMessage, error) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, content); err != nil {
		return nil, matrix.NotJSON("the content is not valid JSON")
	}
	if compact.Len() == 0 || compact.Bytes()[0] != '{' {
		return nil, matrix.BadJSON("the content must be a JSON object")
	}
	return compact.Bytes(), nil
}

// tags is the content of m.tag.
type tags struct {
	Tags map[string]json.RawMessage `json:"tags"`
}

// Tags returns {"tags": …} of the room.
func (u *Users) Tags(ctx context.Context, user matrix.UserID, room matrix.RoomID) (json.RawMessage, error) {
	content, err := u.db.AccountData(ctx, user, room, "m.tag")
	if errors.Is(err, storage.ErrNotFound) {
		return json.RawMessage(`{"tags":{}}`), nil
	}
	return content, err
}

// SetTag sets one tag. Errors: M_BAD_JSON, M_INVALID_PARAM (name over 255 bytes, order not in 0..1, too many).
// Spec v1.19 client-server-api/#room-tagging
func (u *Users) SetTag(ctx context.Context, user matrix.UserID, room matrix.RoomID, tag string, content json.RawMessage) error {
	if err := checkName("the tag", tag, maxTagBytes); err != nil {
		return err
	}
	if len(content) > maxFilterBytes {
		return matrix.TooLarge("a tag must not be larger than 64 KiB")
	}
	content, err := compactObject(content)
	if err != nil {
		return err
	}
	var t struct {
		Order *float64 `json:"order"`
	}
	if err := json.Unmarshal(content, &t); err != nil {
		return matrix.BadJSON("order must be a number")
	}
	if t.Order != nil && (*t.Order < 0 || *t.Order > 1) {
		return matrix.InvalidParam("order must be a number from 0 to 1")
	}
	return u.changeTags(ctx, user, room, func(t *tags) (bool, error) {
		if _, has := t.Tags[tag]; !has && len(t.Tags) >= maxTags {
			return false, matrix.InvalidParam("a room cannot have more than %d tags", maxTags)
		}
		t.Tags[tag] = content
		return true, nil
	})
}

// DeleteTag removes one tag; it is no error if it is not there.
func (u *Users) DeleteTag(ctx context.Context, user matrix.UserID, room matrix.RoomID, tag string) error {
	return u.changeTags(ctx, user, room, func(t *tags) (bool, error) {
		_, has := t.Tags[tag]
		delete(t.Tags, tag)
		return has, nil
	})
}

func (u *Users) changeTags(ctx context.Context, user matrix.UserID, room matrix.RoomID, change func(*tags) (bool, error)) error {
	return u.db.ChangeAccountData(ctx, user, room, "m.tag", func(old json.RawMessage) (json.RawMessage, error) {
		var t tags
		if old != nil {
			_ = json.Unmarshal(old, &t) // clients may have stored anything: start anew then
		}
		if t.Tags == nil {
			t.Tags = map[string]json.RawMessage{}
		}
		changed, err := change(&t)
		if err != nil || !changed {
			return nil, err
		}
		return json.Marshal(t)
	})
}

// CopyRoomAccountData copies the tags of one user from a room to the one that replaces it, and puts the new one into
// m.direct where the old one was. Spec v1.19 client-server-api/#room-upgrades
func (u *Users) CopyRoomAccountData(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	content, err := u.db.AccountData(ctx, user, from, "m.tag")
	if err == nil {
		err = u.db.SetAccountData(ctx, user, to, "m.tag", content)
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	return u.db.ChangeAccountData(ctx, user, "", "m.direct", func(old json.RawMessage) (json.RawMessage, error) {
		var direct map[string][]string
		if old == nil || json.Unmarshal(old, &direct) != nil {
			return nil, nil
		}
		changed := false
		for with, rooms := range direct {
			has, hasNew := false, false
			for _, r := range rooms {
				has, hasNew = has || r == string(from), hasNew || r == string(to)
			}
			if has && !hasNew {
				direct[with], changed = append(rooms, string(to)), true
			}
		}
		if !changed {
			return nil, nil
		}
		return json.Marshal(direct)
	})
}

// Ignored is whom the user ignores (m.ignored_user_list); shared, must not be changed. From memory when warm.
func (u *Users) Ignored(ctx context.Context, user matrix.UserID) (map[matrix.UserID]bool, error) {
	return u.ignored.Load(user, func() (map[matrix.UserID]bool, error) {
		content, err := u.db.AccountData(ctx, user, "", "m.ignored_user_list")
		if errors.Is(err, storage.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		var list struct {
			Users map[matrix.UserID]json.RawMessage `json:"ignored_users"`
		}
		if json.Unmarshal(content, &list) != nil {
			return nil, nil // clients may have stored anything
		}
		ignored := make(map[matrix.UserID]bool, len(list.Users))
		for other := range list.Users {
			if other != user {
				ignored[other] = true
			}
		}
		return ignored, nil
	})
}

// filterKey names a stored filter.
type filterKey struct {
	user matrix.UserID
	id   int64
}

// NewFilter stores a filter and returns its ID; an equal filter gets the ID it has.
// Errors: M_BAD_JSON, M_NOT_JSON, M_TOO_LARGE (64 KiB). The caller has checked what is in it.
func (u *Users) NewFilter(ctx context.Context, user matrix.UserID, filter json.RawMessage) (string, error) {
	if len(filter) > maxFilterBytes {
		return "", matrix.TooLarge("a filter must not be larger than 64 KiB")
	}
	filter, err := compactObject(filter)
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(filter)
	id, err := u.db.AddFilter(ctx, user, hash[:], filter, maxFilters)
	if errors.Is(err, storage.ErrLimit) {
		return "", matrix.ResourceLimitExceeded("there are too many filters on this account").With("admin_contact", "")
	}
	return strconv.FormatInt(id, 10), err
}

// Filter finds a stored filter. It never changes: callers may keep it. Error: M_NOT_FOUND.
func (u *Users) Filter(ctx context.Context, user matrix.UserID, id string) (json.RawMessage, error) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil || strings.HasPrefix(id, "+") {
		return nil, matrix.NotFound("there is no such filter")
	}
	filter, err := u.filters.Load(filterKey{user, n}, func() (json.RawMessage, error) { return u.db.Filter(ctx, user, n) })
	if errors.Is(err, storage.ErrNotFound) {
		return nil, matrix.NotFound("there is no such filter")
	}
	return filter, err
}
