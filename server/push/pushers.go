package push

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"unicode/utf8"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Limits of pushers. Spec v1.19 client-server-api/#post_matrixclientv3pushersset
const (
	maxPushKey     = 512
	maxAppID       = 64
	maxPusherBytes = 16 * 1024
	gatewayPath    = "/_matrix/push/v1/notify"
)

// pusher is what a client sees and sets.
type pusher struct {
	PushKey     string                     `json:"pushkey"`
	Kind        string                     `json:"kind"`
	AppID       string                     `json:"app_id"`
	AppName     string                     `json:"app_display_name"`
	DeviceName  string                     `json:"device_display_name"`
	ProfileTag  string                     `json:"profile_tag,omitempty"`
	Lang        string                     `json:"lang"`
	Data        map[string]json.RawMessage `json:"data"`
	appendToAll bool
}

// Pushers answers GET /pushers: {"pushers": [...]}.
func (p *Push) Pushers(ctx context.Context, user matrix.UserID) (json.RawMessage, error) {
	rows, err := p.pushersOf(ctx, user)
	if err != nil {
		return nil, err
	}
	list := []json.RawMessage{}
	for _, row := range rows {
		list = append(list, row.Content)
	}
	return json.Marshal(map[string][]json.RawMessage{"pushers": list})
}

func (p *Push) pushersOf(ctx context.Context, user matrix.UserID) ([]storage.Pusher, error) {
	return p.pushers.Load(user, func() ([]storage.Pusher, error) { return p.db.Pushers(ctx, user) })
}

// SetPusher is POST /pushers/set. A JSON null kind deletes it.
// Errors: M_MISSING_PARAM, M_INVALID_PARAM (kind, URL, lengths, too many), M_BAD_JSON.
func (p *Push) SetPusher(ctx context.Context, user matrix.UserID, device matrix.DeviceID, body json.RawMessage) error {
	s, remove, err := p.parsePusher(body)
	if err != nil {
		return err
	}
	if remove {
		return p.db.DeletePusher(ctx, user, s.AppID, s.PushKey)
	}
	content, err := json.Marshal(s)
	if err != nil {
		return matrix.BadJSON("data is not valid JSON")
	}
	err = p.db.SetPusher(ctx, storage.Pusher{User: user, AppID: s.AppID, PushKey: s.PushKey, Device: device, Content: content,
		CreatedMS: p.now().UnixMilli()}, !s.appendToAll, p.cfg.MaxPushers)
	if errors.Is(err, storage.ErrLimit) {
		return matrix.InvalidParam("there are %d pushers on this account already", p.cfg.MaxPushers)
	}
	return err
}

// parsePusher reads the body of POST /pushers/set.
func (p *Push) parsePusher(body json.RawMessage) (s pusher, remove bool, err error) {
	var r struct {
		PushKey    *string                    `json:"pushkey"`
		Kind       json.RawMessage            `json:"kind"`
		AppID      *string                    `json:"app_id"`
		AppName    *string                    `json:"app_display_name"`
		DeviceName *string                    `json:"device_display_name"`
		ProfileTag string                     `json:"profile_tag"`
		Lang       *string                    `json:"lang"`
		Data       map[string]json.RawMessage `json:"data"`
		Append     bool                       `json:"append"`
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return s, false, matrix.BadJSON("the pusher has members of the wrong type")
	}
	if missing := missingOf(map[string]bool{"app_id": r.AppID == nil, "pushkey": r.PushKey == nil, "kind": r.Kind == nil}); missing != "" {
		return s, false, matrix.MissingParam("Missing parameters: %s", missing)
	}
	s = pusher{PushKey: *r.PushKey, AppID: *r.AppID, appendToAll: r.Append}
	switch {
	case s.PushKey == "" || len(s.PushKey) > maxPushKey || !storable(s.PushKey):
		return s, false, matrix.InvalidParam("pushkey must be 1 to %d bytes of text", maxPushKey)
	case s.AppID == "" || utf8.RuneCountInString(s.AppID) > maxAppID || !storable(s.AppID):
		return s, false, matrix.InvalidParam("app_id must be 1 to %d characters", maxAppID)
	case string(r.Kind) == "null":
		return s, true, nil
	}
	if json.Unmarshal(r.Kind, &s.Kind) != nil || s.Kind != "http" {
		return s, false, matrix.InvalidParam("kind must be http or null")
	}
	missing := missingOf(map[string]bool{"app_display_name": r.AppName == nil, "data": r.Data == nil,
		"device_display_name": r.DeviceName == nil, "lang": r.Lang == nil})
	if missing != "" {
		return s, false, matrix.MissingParam("Missing parameters: %s", missing)
	}
	s.AppName, s.DeviceName, s.Lang, s.ProfileTag, s.Data = *r.AppName, *r.DeviceName, *r.Lang, r.ProfileTag, r.Data
	if len(body) > maxPusherBytes {
		return s, false, matrix.TooLarge("a pusher must not be larger than %d bytes", maxPusherBytes)
	}
	return s, false, p.checkGateway(s.Data["url"])
}

func missingOf(missing map[string]bool) string {
	var names []string
	for _, name := range []string{"app_display_name", "app_id", "data", "device_display_name", "kind", "lang", "pushkey"} {
		if missing[name] {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

func storable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

func (p *Push) checkGateway(raw json.RawMessage) error {
	var text string
	if raw == nil || json.Unmarshal(raw, &text) != nil || text == "" {
		return matrix.MissingParam("data.url is missing")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return matrix.InvalidParam("data.url is not a URL")
	case u.Scheme != "https" && !(p.cfg.InsecureGateways && u.Scheme == "http"):
		return matrix.InvalidParam("data.url must be an https URL")
	case u.Path != gatewayPath:
		return matrix.InvalidParam("data.url must have the path %s", gatewayPath)
	}
	return nil
}
