package push

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// rule is a push rule as clients see it. Spec v1.19 client-server-api/#push-rules
type rule struct {
	Actions    []json.RawMessage `json:"actions"`
	Conditions []json.RawMessage `json:"conditions,omitzero"` // of override and underride rules
	Default    bool              `json:"default"`
	Enabled    bool              `json:"enabled"`
	Pattern    *string           `json:"pattern,omitempty"` // of content rules
	ID         string            `json:"rule_id"`
}

// ruleset holds the rules of each kind, the most important first.
type ruleset struct {
	Override  []rule `json:"override"`
	Content   []rule `json:"content"`
	Room      []rule `json:"room"`
	Sender    []rule `json:"sender"`
	Underride []rule `json:"underride"`
}

// kind finds the rules of a kind, nil if there is no such kind.
func (s *ruleset) kind(kind string) *[]rule {
	switch kind {
	case "override":
		return &s.Override
	case "content":
		return &s.Content
	case "room":
		return &s.Room
	case "sender":
		return &s.Sender
	case "underride":
		return &s.Underride
	}
	return nil
}

// pushRules is the content of m.push_rules.
type pushRules struct {
	Global ruleset `json:"global"`
}

const (
	eventType = "m.push_rules"
	master    = ".m.rule.master"
)

func is(key, pattern string) string {
	condition, _ := json.Marshal(map[string]string{"kind": "event_match", "key": key, "pattern": pattern})
	return string(condition)
}

func fixed(id string, actions []json.RawMessage, conditions ...string) rule {
	return rule{ID: id, Default: true, Enabled: true, Actions: actions, Conditions: rawStrings(conditions...)}
}

// defaultRules are the rules that a user has from the start.
// Spec v1.19 client-server-api/#predefined-rules
func defaultRules(user matrix.UserID) *ruleset {
	contains, _ := json.Marshal(map[string]any{"kind": "event_property_contains", "key": `content.m\.mentions.user_ids`, "value": user})
	const (
		notify    = `"notify"`
		sound     = `{"set_tweak":"sound","value":"default"}`
		ring      = `{"set_tweak":"sound","value":"ring"}`
		highlight = `{"set_tweak":"highlight"}`
		two       = `{"kind":"room_member_count","is":"2"}`
	)
	off := fixed(master, rawStrings())
	off.Enabled = false
	return &ruleset{
		Override: []rule{
			off,
			fixed(".m.rule.suppress_notices", rawStrings(), is("content.msgtype", "m.notice")),
			fixed(".m.rule.invite_for_me", rawStrings(notify, sound), is("type", "m.room.member"), is("content.membership", "invite"), is("state_key", string(user))),
			fixed(".m.rule.member_event", rawStrings(), is("type", "m.room.member")),
			fixed(".m.rule.is_user_mention", rawStrings(notify, sound, highlight), string(contains)),
			fixed(".m.rule.is_room_mention", rawStrings(notify, highlight),
				`{"kind":"event_property_is","key":"content.m\\.mentions.room","value":true}`, `{"kind":"sender_notification_permission","key":"room"}`),
			fixed(".m.rule.tombstone", rawStrings(notify, highlight), is("type", "m.room.tombstone"), is("state_key", "")),
			fixed(".m.rule.reaction", rawStrings(), is("type", "m.reaction")),
			fixed(".m.rule.room.server_acl", rawStrings(), is("type", "m.room.server_acl"), is("state_key", "")),
			fixed(".m.rule.suppress_edits", rawStrings(), `{"kind":"event_property_is","key":"content.m\\.relates_to.rel_type","value":"m.replace"}`),
		},
		Content: []rule{},
		Room:    []rule{},
		Sender:  []rule{},
		Underride: []rule{
			fixed(".m.rule.call", rawStrings(notify, ring), is("type", "m.call.invite")),
			fixed(".m.rule.encrypted_room_one_to_one", rawStrings(notify, sound), two, is("type", "m.room.encrypted")),
			fixed(".m.rule.room_one_to_one", rawStrings(notify, sound), two, is("type", "m.room.message")),
			fixed(".m.rule.message", rawStrings(notify), is("type", "m.room.message")),
			fixed(".m.rule.encrypted", rawStrings(notify), is("type", "m.room.encrypted")),
		},
	}
}

var kinds = [...]string{"override", "content", "room", "sender", "underride"}

// merge puts the user's own rules, and what the user changed about the default ones, together with the default rules of
// today. The user's own come first, but for the master rule.
func merge(stored *ruleset, user matrix.UserID) *ruleset {
	merged := defaultRules(user)
	for _, kind := range kinds {
		rules, old := merged.kind(kind), *stored.kind(kind)
		var own []rule
		for _, r := range old {
			if !strings.HasPrefix(r.ID, ".") {
				r.Default = false
				own = append(own, r)
				continue
			}
			for i := range *rules {
				if d := &(*rules)[i]; d.ID == r.ID {
					d.Enabled, d.Actions = r.Enabled, r.Actions
				}
			}
		}
		first := 0
		if kind == "override" {
			first = 1
		}
		all := append([]rule{}, (*rules)[:first]...)
		all = append(all, own...)
		*rules = append(all, (*rules)[first:]...)
	}
	return merged
}

// parseRules reads stored rules. Whatever cannot be read counts as not there: it must not lock a user out.
func parseRules(content json.RawMessage) *ruleset {
	var r pushRules
	if content == nil || json.Unmarshal(content, &r) != nil {
		return nil
	}
	return &r.Global
}

// stored are the rules as they were last written, nil if they never were.
func (p *Push) stored(ctx context.Context, user matrix.UserID) (*ruleset, error) {
	content, err := p.db.AccountData(ctx, user, "", eventType)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	return parseRules(content), err
}

func (p *Push) ruleset(ctx context.Context, user matrix.UserID) (*ruleset, error) {
	stored, err := p.stored(ctx, user)
	if err != nil {
		return nil, err
	}
	if stored == nil {
		return defaultRules(user), nil
	}
	return merge(stored, user), nil
}

// Rules returns the answer to GET /pushrules/: {"global": {...}} with the defaults; it is also the content of
// m.push_rules.
func (p *Push) Rules(ctx context.Context, user matrix.UserID) (json.RawMessage, error) {
	rules, err := p.ruleset(ctx, user)
	if err != nil {
		return nil, err
	}
	return json.Marshal(pushRules{*rules})
}

// KindRules answers with the list of rules of one kind. Error: M_INVALID_PARAM (kind).
func (p *Push) KindRules(ctx context.Context, user matrix.UserID, kind string) (json.RawMessage, error) {
	all, err := p.ruleset(ctx, user)
	if err != nil {
		return nil, err
	}
	rules := all.kind(kind)
	if rules == nil {
		return nil, errKind
	}
	return json.Marshal(*rules)
}

var (
	errKind = matrix.InvalidParam("the kind must be override, content, room, sender or underride")
	errRule = matrix.NotFound("there is no such push rule")
)

// find looks for a rule. Errors: M_INVALID_PARAM (kind), M_NOT_FOUND.
func (s *ruleset) find(kind, id string) (*rule, error) {
	rules := s.kind(kind)
	if rules == nil {
		return nil, errKind
	}
	for i := range *rules {
		if (*rules)[i].ID == id {
			return &(*rules)[i], nil
		}
	}
	return nil, errRule
}

func (p *Push) rule(ctx context.Context, user matrix.UserID, kind, id string) (*rule, error) {
	all, err := p.ruleset(ctx, user)
	if err != nil {
		return nil, err
	}
	return all.find(kind, id)
}

// Rule answers GET /pushrules/global/{kind}/{ruleId}. Error: M_NOT_FOUND, also for a kind that there is not.
func (p *Push) Rule(ctx context.Context, user matrix.UserID, kind, id string) (json.RawMessage, error) {
	r, err := p.rule(ctx, user, kind, id)
	if errors.Is(err, errKind) {
		err = errRule
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// RuleEnabled answers GET …/enabled. Errors as Rule.
func (p *Push) RuleEnabled(ctx context.Context, user matrix.UserID, kind, id string) (bool, error) {
	r, err := p.rule(ctx, user, kind, id)
	if err != nil {
		return false, err
	}
	return r.Enabled, nil
}

// RuleActions answers GET …/actions with the array. Errors as Rule.
func (p *Push) RuleActions(ctx context.Context, user matrix.UserID, kind, id string) (json.RawMessage, error) {
	r, err := p.rule(ctx, user, kind, id)
	if err != nil {
		return nil, err
	}
	return json.Marshal(r.Actions)
}

// change stores what fn makes of the user's rules.
func (p *Push) change(ctx context.Context, user matrix.UserID, fn func(*ruleset) error) error {
	return p.db.ChangeAccountData(ctx, user, "", eventType, func(old json.RawMessage) (json.RawMessage, error) {
		rules := defaultRules(user)
		if stored := parseRules(old); stored != nil {
			rules = merge(stored, user)
		}
		if err := fn(rules); err != nil {
			return nil, err
		}
		return json.Marshal(pushRules{*rules})
	})
}

const (
	maxRuleID     = 512
	maxConditions = 64
	maxActions    = 64
	maxPattern    = 1024
)

// parseRule reads the body of PUT /pushrules/global/{kind}/{ruleId}.
func parseRule(kind, id string, body json.RawMessage) (rule, error) {
	var b struct {
		Actions    *[]json.RawMessage `json:"actions"`
		Conditions []json.RawMessage  `json:"conditions"`
		Pattern    *string            `json:"pattern"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return rule{}, matrix.BadJSON("the rule has members of the wrong type")
	}
	r := rule{ID: id, Enabled: true}
	if b.Actions == nil {
		return r, matrix.MissingParam("actions is missing")
	}
	if err := checkActions(*b.Actions); err != nil {
		return r, err
	}
	r.Actions = *b.Actions
	switch kind {
	case "content":
		if b.Pattern == nil {
			return r, matrix.MissingParam("pattern is missing")
		}
		if len(*b.Pattern) > maxPattern {
			return r, matrix.InvalidParam("a pattern must not be longer than %d bytes", maxPattern)
		}
		r.Pattern = b.Pattern
	case "override", "underride":
		if len(b.Conditions) > maxConditions {
			return r, matrix.InvalidParam("a rule must not have more than %d conditions", maxConditions)
		}
		for _, raw := range b.Conditions {
			var c struct {
				Kind    string `json:"kind"`
				Pattern string `json:"pattern"`
			}
			if err := json.Unmarshal(raw, &c); err != nil || c.Kind == "" {
				return r, matrix.BadJSON("a condition must be an object with a kind")
			}
			if len(c.Pattern) > maxPattern {
				return r, matrix.InvalidParam("a pattern must not be longer than %d bytes", maxPattern)
			}
		}
		if r.Conditions = b.Conditions; r.Conditions == nil {
			r.Conditions = []json.RawMessage{}
		}
	}
	return r, nil
}

// checkActions checks that each action is a word or sets a tweak.
func checkActions(actions []json.RawMessage) error {
	if len(actions) > maxActions {
		return matrix.InvalidParam("a rule must not have more than %d actions", maxActions)
	}
	for _, raw := range actions {
		var word string
		var tweak struct {
			Name string `json:"set_tweak"`
		}
		if json.Unmarshal(raw, &word) == nil && string(raw) != "null" {
			continue
		}
		if json.Unmarshal(raw, &tweak) != nil || tweak.Name == "" {
			return matrix.BadJSON("an action must be a string or an object with set_tweak")
		}
	}
	return nil
}

// checkRuleID checks the ID of a rule that a client may make or delete.
func checkRuleID(id string) error {
	switch {
	case strings.HasPrefix(id, "."):
		return matrix.InvalidParam("rules whose ID starts with a dot belong to the server")
	case id == "" || len(id) > maxRuleID || strings.ContainsAny(id, `/\`):
		return matrix.InvalidParam("a rule ID is 1 to %d bytes without / and \\", maxRuleID)
	}
	return nil
}

// SetRule adds or replaces a rule of the user's own; before and after name rules of the same kind ("" for none).
// Errors: M_INVALID_PARAM (kind, ID with a leading dot or a slash, limits), M_UNKNOWN 400 (before or after is not
// there or a default rule), M_MISSING_PARAM, M_BAD_JSON.
// Spec v1.19 client-server-api/#put_matrixclientv3pushrulesglobalkindruleid
func (p *Push) SetRule(ctx context.Context, user matrix.UserID, kind, id, before, after string, body json.RawMessage) error {
	if new(ruleset).kind(kind) == nil {
		return errKind
	}
	if err := checkRuleID(id); err != nil {
		return err
	}
	r, err := parseRule(kind, id, body)
	if err != nil {
		return err
	}
	return p.change(ctx, user, func(all *ruleset) error {
		rules := all.kind(kind)
		if own := len(*rules) - len(*defaultRules(user).kind(kind)); own >= p.cfg.MaxRules {
			return matrix.InvalidParam("there are %d push rules of this kind already", own)
		}
		return place(rules, r, kind == "override", before, after)
	})
}

// place puts a rule where it was, next to another one, or first among the user's own.
func place(rules *[]rule, r rule, hasMaster bool, before, after string) error {
	at := 0
	if hasMaster {
		at = 1
	}
	list := make([]rule, 0, len(*rules)+1)
	for i, old := range *rules {
		if old.ID == r.ID { // it stays enabled or not, and in its place
			r.Enabled = old.Enabled
			at = i
			continue
		}
		list = append(list, old)
	}
	next := before
	if next == "" {
		next = after
	}
	if next != "" {
		found := false
		for i, old := range list {
			if old.ID == next && !old.Default {
				at, found = i, true
			}
		}
		if !found {
			return matrix.BadRequest("before/after rule not found: %s", next)
		}
		if before == "" {
			at++
		}
	}
	list = append(list, rule{})
	copy(list[at+1:], list[at:])
	list[at] = r
	*rules = list
	return nil
}

// DeleteRule deletes a rule of the user's own. Errors: M_NOT_FOUND, M_INVALID_PARAM (kind, a default rule).
func (p *Push) DeleteRule(ctx context.Context, user matrix.UserID, kind, id string) error {
	if strings.HasPrefix(id, ".") {
		return matrix.InvalidParam("default rules cannot be deleted, only switched off")
	}
	return p.change(ctx, user, func(all *ruleset) error {
		if _, err := all.find(kind, id); err != nil {
			return err
		}
		rules := all.kind(kind)
		kept := []rule{}
		for _, r := range *rules {
			if r.ID != id {
				kept = append(kept, r)
			}
		}
		*rules = kept
		return nil
	})
}

// SetRuleEnabled also works on default rules. Errors: M_NOT_FOUND, M_INVALID_PARAM (kind).
func (p *Push) SetRuleEnabled(ctx context.Context, user matrix.UserID, kind, id string, enabled bool) error {
	return p.change(ctx, user, func(all *ruleset) error {
		r, err := all.find(kind, id)
		if err == nil {
			r.Enabled = enabled
		}
		return err
	})
}

// SetRuleActions replaces the actions, a JSON array; also of default rules.
// Errors: M_NOT_FOUND, M_INVALID_PARAM (kind), M_BAD_JSON, M_MISSING_PARAM.
func (p *Push) SetRuleActions(ctx context.Context, user matrix.UserID, kind, id string, actions json.RawMessage) error {
	if len(actions) == 0 {
		return matrix.MissingParam("actions is missing")
	}
	var list []json.RawMessage
	if err := json.Unmarshal(actions, &list); err != nil || list == nil {
		return matrix.BadJSON("actions must be an array")
	}
	if err := checkActions(list); err != nil {
		return err
	}
	return p.change(ctx, user, func(all *ruleset) error {
		r, err := all.find(kind, id)
		if err == nil {
			r.Actions = list
		}
		return err
	})
}

// CopyRoomRules copies the room rule of a room to the one that replaces it.
// Spec v1.19 client-server-api/#room-upgrades
func (p *Push) CopyRoomRules(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	err := p.change(ctx, user, func(all *ruleset) error {
		r, err := all.find("room", string(from))
		if err != nil {
			return err
		}
		moved := *r
		moved.ID = string(to)
		return place(&all.Room, moved, false, "", "")
	})
	if errors.Is(err, errRule) {
		return nil
	}
	return err
}
