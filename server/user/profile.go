package user

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"unicode/utf8"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Limits of profiles. Spec v1.19 client-server-api/#profiles
const (
	maxProfileBytes = 64 * 1024
	maxFieldName    = 255
	maxDisplayName  = 256 * 4 // bytes; 256 characters are allowed
	maxDisplayRunes = 256
	maxAvatarURL    = 1000
)

// Profile returns all fields of the user's profile; a remote user's server is asked. Errors: M_NOT_FOUND, and M_UNKNOWN with status
// 502 if that server does not answer, so that a client can tell nobody from nobody at home.
func (u *Users) Profile(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	if u.IsLocal(user) {
		return u.LocalProfile(ctx, user)
	}
	return u.remoteProfile(ctx, user, "")
}

// ProfileField returns {field: value}; a remote user's server is asked. Error: M_NOT_FOUND.
func (u *Users) ProfileField(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	var all map[string]json.RawMessage
	var err error
	if u.IsLocal(user) {
		all, err = u.LocalProfile(ctx, user)
	} else {
		all, err = u.remoteProfile(ctx, user, field)
	}
	if err != nil {
		return nil, err
	}
	value, ok := all[field]
	if !ok {
		return nil, matrix.NotFound("the profile has no such field")
	}
	return map[string]json.RawMessage{field: value}, nil
}

func (u *Users) remoteProfile(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	if u.remote == nil {
		return nil, matrix.NotFound("there is no such user")
	}
	fields, err := u.remote.QueryProfile(ctx, user.Server(), user, field)
	var known *matrix.Error
	switch {
	case err == nil || ctx.Err() != nil:
		return fields, err
	case errors.As(err, &known) && (known.Code == "M_NOT_FOUND" || known.Code == "M_FORBIDDEN"):
		return nil, err
	}
	u.log.Info("ask another server for a profile", "server", user.Server(), "err", err)
	return nil, &matrix.Error{Code: "M_UNKNOWN", Message: "the user's server does not answer", Status: http.StatusBadGateway}
}

// LocalProfile returns all fields of a user of this server without asking anybody. Error: M_NOT_FOUND.
func (u *Users) LocalProfile(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	p, err := u.db.Profile(ctx, user)
	if err != nil {
		return nil, noUser(err)
	}
	return profileFields(p)
}

func noUser(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return matrix.NotFound("there is no such user")
	}
	return err
}

func profileFields(p *storage.Profile) (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if p.Fields != nil {
		if err := json.Unmarshal(p.Fields, &fields); err != nil {
			return nil, err
		}
	}
	if p.DisplayName != nil {
		fields["displayname"] = quote(string(p.DisplayName))
	}
	if p.AvatarURL != nil {
		fields["avatar_url"] = quote(string(p.AvatarURL))
	}
	return fields, nil
}

// quote makes a JSON string.
func quote(s string) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes
	return bytes.TrimSpace(b.Bytes())
}

// nameAndAvatar is what member events show.
type nameAndAvatar struct{ name, avatarURL string }

// DisplayNameAndAvatar are a local user's, for member events; "" if not set. From memory when warm.
// Error: M_NOT_FOUND.
func (u *Users) DisplayNameAndAvatar(ctx context.Context, user matrix.UserID) (name, avatarURL string, err error) {
	n, err := u.names.Load(user, func() (nameAndAvatar, error) {
		p, err := u.db.Profile(ctx, user)
		if err != nil {
			return nameAndAvatar{}, noUser(err)
		}
		return nameAndAvatar{string(p.DisplayName), string(p.AvatarURL)}, nil
	})
	return n.name, n.avatarURL, err
}

// SetProfileField sets one field of a local user; a nil value deletes it, and so does JSON null or an empty string for
// displayname and avatar_url. changed is false if it had this value already. The caller sends the member events when
// displayname or avatar_url changed.
// Errors: M_KEY_TOO_LARGE, M_PROFILE_TOO_LARGE, M_INVALID_PARAM, M_BAD_JSON, M_NOT_FOUND (no such user).
func (u *Users) SetProfileField(ctx context.Context, user matrix.UserID, field string, value json.RawMessage) (changed bool, err error) {
	if err := checkField(field); err != nil {
		return false, err
	}
	var text []byte
	if field == "displayname" || field == "avatar_url" {
		if text, err = textField(field, value); err != nil {
			return false, err
		}
	}
	err = u.db.ChangeProfile(ctx, user, func(p *storage.Profile) (bool, error) {
		switch field {
		case "displayname":
			changed = !bytes.Equal(p.DisplayName, text)
			p.DisplayName = text
		case "avatar_url":
			changed = !bytes.Equal(p.AvatarURL, text)
			p.AvatarURL = text
		default:
			changed, err = setOtherField(p, field, value)
		}
		if err == nil && changed && value != nil {
			err = checkProfileSize(p)
		}
		return changed, err
	}, func(p *storage.Profile) string { return nameKey(user, string(p.DisplayName)) })
	return changed && err == nil, noUser(err)
}

// textField reads displayname or avatar_url: nil for none.
func textField(field string, value json.RawMessage) ([]byte, error) {
	if value == nil || string(value) == "null" {
		return nil, nil
	}
	var s string
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, matrix.BadJSON("%s must be a string", field)
	}
	if strings.IndexByte(s, 0) >= 0 {
		return nil, matrix.InvalidParam("%s must not contain a NUL", field)
	}
	switch {
	case s == "":
		return nil, nil
	case field == "displayname" && utf8.RuneCountInString(s) > maxDisplayRunes:
		return nil, matrix.InvalidParam("displayname must not be longer than %d characters", maxDisplayRunes)
	case field == "avatar_url" && len(s) > maxAvatarURL:
		return nil, matrix.InvalidParam("avatar_url must not be longer than %d bytes", maxAvatarURL)
	}
	return []byte(s), nil
}

func setOtherField(p *storage.Profile, field string, value json.RawMessage) (changed bool, err error) {
	fields := map[string]json.RawMessage{}
	if p.Fields != nil {
		if err := json.Unmarshal(p.Fields, &fields); err != nil {
			return false, err
		}
	}
	old, had := fields[field]
	if value == nil {
		delete(fields, field)
		changed = had
	} else {
		if !json.Valid(value) {
			return false, matrix.BadJSON("the value of the field is not valid JSON")
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, value); err != nil {
			return false, matrix.BadJSON("the value of the field is not valid JSON")
		}
		fields[field] = compact.Bytes()
		changed = !had || !bytes.Equal(old, compact.Bytes())
	}
	p.Fields, err = json.Marshal(fields)
	return changed, err
}

func checkProfileSize(p *storage.Profile) error {
	fields, err := profileFields(p)
	if err != nil {
		return err
	}
	all, err := json.Marshal(fields)
	if err == nil && len(all) > maxProfileBytes {
		return matrix.ProfileTooLarge("a profile must not be larger than 64 KiB")
	}
	return err
}

// checkField checks the name of a profile field: one of the spec's, or of the common namespaced identifier grammar.
func checkField(field string) error {
	switch field {
	case "displayname", "avatar_url", "m.tz":
		return nil
	case "":
		return matrix.MissingParam("the name of the field is missing")
	}
	if len(field) > maxFieldName {
		return matrix.KeyTooLarge("the name of a profile field must not be longer than %d bytes", maxFieldName)
	}
	if !('a' <= field[0] && field[0] <= 'z') {
		return matrix.InvalidParam("the name of a profile field must start with a-z")
	}
	for i := 0; i < len(field); i++ {
		if c := field[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			return matrix.InvalidParam("the name of a profile field may contain only a-z, 0-9 and - _ .")
		}
	}
	return nil
}

// nameKey is what the user directory looks through.
func nameKey(user matrix.UserID, displayName string) string {
	return strings.ToLower(string(user) + " " + displayName)
}
