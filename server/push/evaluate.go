package push

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"

	"parley.im/parley/server/matrix"
)

// Event is what the rules see of an event.
type Event struct {
	Type     string
	Sender   matrix.UserID
	RoomID   matrix.RoomID
	StateKey *string // nil: no state event
	Content  json.RawMessage
	Full     json.RawMessage // the whole event; only rules with unusual keys look at it. May be nil.
}

// Room is what the rules see of the room at the event.
type Room struct {
	Members int // joined
	// SenderMayNotify reports whether the event's sender has the power for notifications of this key ("room").
	SenderMayNotify func(key string) bool
}

// Result is what the rules say about an event for one user.
type Result struct {
	Notify    bool
	Highlight bool
	Sound     string // "" for none
}

// Compiled is one user's rules, made ready. Immutable; made once per user and kept until the rules change.
type Compiled struct {
	user  matrix.UserID
	rules *compiledRules
}

// compiledRules may be shared by many users.
type compiledRules struct{ rules []compiledRule }

// compiledRule is an enabled rule that can match.
type compiledRule struct {
	conditions []condition
	result     Result
	actions    []json.RawMessage
}

// condition is one test of an event.
type condition struct {
	kind    conditionKind
	key     string // path of a property, or kind of a notification
	literal string // lower case: for a pattern without * and ?
	glob    *regexp.Regexp
	value   scalar
	op      string
	number  int
}

type conditionKind uint8

const (
	propertyMatches  conditionKind = iota // literal or glob, the whole value
	bodyMatches                           // literal or glob, whole words of content.body
	propertyIs                            // value
	propertyContains                      // value
	propertyIsOwner                       // the user whose rules these are
	containsOwner
	containsName
	memberCount
	senderMay
	stateKeyIsEmpty
)

// compile leaves out rules that are switched off or can never match. Where a rule names owner, it is compiled to mean
// whoever's rules these are.
func compile(s *ruleset, owner matrix.UserID) *compiledRules {
	c := &compiledRules{}
	for _, kind := range kinds {
		for _, r := range *s.kind(kind) {
			conditions, ok := compileConditions(kind, &r, owner)
			if !r.Enabled || !ok {
				continue
			}
			c.rules = append(c.rules, compiledRule{conditions, resultOf(r.Actions), r.Actions})
		}
	}
	return c
}

// compileConditions returns false if the rule can never match.
func compileConditions(kind string, r *rule, owner matrix.UserID) ([]condition, bool) {
	switch kind {
	case "room":
		return []condition{{kind: propertyIs, key: "room_id", value: scalar{kind: isString, text: r.ID}}}, true
	case "sender":
		return []condition{{kind: propertyIs, key: "sender", value: scalar{kind: isString, text: r.ID}}}, true
	case "content":
		if r.Pattern == nil {
			return nil, false
		}
		return []condition{compilePattern("content.body", *r.Pattern)}, true
	}
	var all []condition
	for _, raw := range r.Conditions {
		c, ok := compileCondition(raw, owner)
		if !ok {
			return nil, false
		}
		all = append(all, c)
	}
	return all, true
}

// compileCondition returns false for what is unknown or malformed: it matches no event.
// Spec v1.19 client-server-api/#conditions-1
func compileCondition(raw json.RawMessage, owner matrix.UserID) (c condition, ok bool) {
	var r struct {
		Kind    string          `json:"kind"`
		Key     string          `json:"key"`
		Pattern *string         `json:"pattern"`
		Is      string          `json:"is"`
		Value   json.RawMessage `json:"value"`
	}
	if json.Unmarshal(raw, &r) != nil {
		return c, false
	}
	switch r.Kind {
	case "event_match":
		if r.Key == "" || r.Pattern == nil {
			return c, false
		}
		switch {
		case *r.Pattern == string(owner) && r.Key != "content.body":
			return condition{kind: propertyIsOwner, key: r.Key}, true
		case r.Key == "state_key" && *r.Pattern == "":
			return condition{kind: stateKeyIsEmpty}, true
		}
		return compilePattern(r.Key, *r.Pattern), true
	case "event_property_is", "event_property_contains":
		value, ok := parseScalar(r.Value)
		if r.Key == "" || !ok {
			return c, false
		}
		c = condition{kind: propertyIs, key: r.Key, value: value}
		if r.Kind == "event_property_contains" {
			c.kind = propertyContains
			if value == (scalar{kind: isString, text: string(owner)}) {
				c.kind = containsOwner
			}
		}
		return c, true
	case "contains_display_name":
		return condition{kind: containsName}, true
	case "room_member_count":
		c.kind = memberCount
		digits := strings.TrimLeft(r.Is, "<>=")
		n, err := strconv.Atoi(digits)
		c.op, c.number = strings.TrimSuffix(r.Is, digits), n
		switch c.op {
		case "", "==", "<", ">", "<=", ">=":
			return c, err == nil
		}
		return c, false
	case "sender_notification_permission":
		return condition{kind: senderMay, key: r.Key}, r.Key != ""
	}
	return c, false
}

// compilePattern makes the condition that a property matches a glob. content.body is matched by whole words.
func compilePattern(key, pattern string) condition {
	c := condition{kind: propertyMatches, key: key}
	if key == "content.body" {
		c.kind = bodyMatches
	}
	if !strings.ContainsAny(pattern, "*?") {
		c.literal = strings.ToLower(pattern)
		return c
	}
	for strings.Contains(pattern, "**") {
		pattern = strings.ReplaceAll(pattern, "**", "*")
	}
	if strings.Count(pattern, "*") > maxWildcards {
		c.glob = neverMatches
		return c
	}
	var expr strings.Builder
	expr.WriteString("(?is)")
	before, after := "^", "$"
	if c.kind == bodyMatches {
		before, after = "(?:^|[^A-Za-z0-9_])", "(?:$|[^A-Za-z0-9_])"
	}
	expr.WriteString(before)
	for _, r := range pattern {
		switch r {
		case '*':
			expr.WriteString(".*")
		case '?':
			expr.WriteString(".")
		default:
			expr.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	expr.WriteString(after)
	glob, err := regexp.Compile(expr.String()) // linear in the value, whatever the pattern is
	if err != nil {
		glob = neverMatches
	}
	c.glob = glob
	return c
}

// Matching a glob takes time in proportion to the product of these two.
const (
	maxWildcards = 16
	maxGlobText  = 4096 // bytes of a value that are looked at
)

// neverMatches stands for a pattern that cannot be compiled, such as one too large.
var neverMatches = regexp.MustCompile(`[^\x00-\x{10FFFF}]`)

// resultOf reads actions. Words that are not known are passed over, dont_notify and coalesce among them.
// Spec v1.19 client-server-api/#actions
func resultOf(actions []json.RawMessage) (r Result) {
	for _, raw := range actions {
		var tweak struct {
			Name  string          `json:"set_tweak"`
			Value json.RawMessage `json:"value"`
		}
		switch {
		case string(raw) == `"notify"`:
			r.Notify = true
		case json.Unmarshal(raw, &tweak) != nil:
		case tweak.Name == "highlight":
			r.Highlight = tweak.Value == nil || string(tweak.Value) == "true"
		case tweak.Name == "sound":
			_ = json.Unmarshal(tweak.Value, &r.Sound) // not a string: no sound
		}
	}
	if !r.Notify {
		return Result{} // tweaks are about a notification
	}
	return r
}

// scalar is a JSON value that is no array, object or fraction; equal values are ==.
type scalar struct {
	kind   scalarKind
	text   string
	number int64
}

type scalarKind uint8

const (
	isNull scalarKind = iota + 1
	isTrue
	isFalse
	isNumber
	isString
)

func parseScalar(raw json.RawMessage) (scalar, bool) {
	if len(raw) == 0 {
		return scalar{}, false
	}
	switch raw[0] {
	case 'n':
		return scalar{kind: isNull}, true
	case 't':
		return scalar{kind: isTrue}, true
	case 'f':
		return scalar{kind: isFalse}, true
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return scalar{kind: isString, text: s}, err == nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	return scalar{kind: isNumber, number: n}, err == nil
}

// Prepared is one event made ready to be held against many users' rules: its content is parsed at most once.
// Not safe for concurrent use.
type Prepared struct {
	event   Event
	room    Room
	content map[string]json.RawMessage // nil: not parsed yet
	full    map[string]json.RawMessage
	typ     *property
	found   map[string]*property
	may     map[string]bool
}

// property is a value in the event.
type property struct {
	value    scalar // kind 0: absent, or no scalar
	lower    string // of a string
	elements []scalar
}

// Prepare makes the event ready.
func Prepare(e Event, r Room) *Prepared {
	p := &Prepared{event: e, room: r, found: make(map[string]*property, 8)}
	p.typ = textProperty(e.Type)
	p.found["sender"] = textProperty(string(e.Sender))
	p.found["room_id"] = textProperty(string(e.RoomID))
	if e.StateKey != nil {
		p.found["state_key"] = textProperty(*e.StateKey)
	} else {
		p.found["state_key"] = &property{}
	}
	return p
}

func textProperty(s string) *property {
	return &property{value: scalar{kind: isString, text: s}, lower: strings.ToLower(s)}
}

// property finds a property by its path.
func (p *Prepared) property(path string) *property {
	if path == "type" { // asked for most
		return p.typ
	}
	if v, ok := p.found[path]; ok {
		return v
	}
	v := &property{}
	if raw := p.raw(path); len(raw) > 0 {
		if raw[0] == '[' {
			v.elements = parseElements(raw)
		} else if value, ok := parseScalar(raw); ok {
			v.value = value
			v.lower = strings.ToLower(value.text)
		}
	}
	p.found[path] = v
	return v
}

func parseElements(raw json.RawMessage) (elements []scalar) {
	var all []json.RawMessage
	_ = json.Unmarshal(raw, &all) // it is valid JSON
	for _, e := range all {
		if s, ok := parseScalar(e); ok {
			elements = append(elements, s)
		}
	}
	return elements
}

// raw finds the JSON of a property, nil if it is absent. Spec v1.19 appendices/#dot-separated-property-paths
func (p *Prepared) raw(path string) json.RawMessage {
	names := splitPath(path)
	if names[0] == "content" {
		if len(names) == 1 {
			return p.event.Content
		}
		if p.content == nil {
			p.content = map[string]json.RawMessage{}
			_ = json.Unmarshal(p.event.Content, &p.content)
		}
		return descend(p.content[names[1]], names[2:])
	}
	if p.full == nil {
		p.full = map[string]json.RawMessage{}
		_ = json.Unmarshal(p.event.Full, &p.full)
	}
	return descend(p.full[names[0]], names[1:])
}

func descend(raw json.RawMessage, names []string) json.RawMessage {
	for _, name := range names {
		var o map[string]json.RawMessage
		if len(raw) == 0 || raw[0] != '{' || json.Unmarshal(raw, &o) != nil {
			return nil
		}
		raw = o[name]
	}
	return raw
}

// splitPath cuts a path at its dots; "\." is a dot and "\\" a backslash in a name.
func splitPath(path string) []string {
	var names []string
	var name strings.Builder
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '.':
			names = append(names, name.String())
			name.Reset()
		case c == '\\' && i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '\\'):
			i++
			name.WriteByte(path[i])
		default:
			name.WriteByte(c)
		}
	}
	return append(names, name.String())
}

// Evaluate finds what the rules say. displayName is the user's in the room ("" for none), for old
// contains_display_name rules. The user's own events never notify.
func (c *Compiled) Evaluate(p *Prepared, displayName string) Result {
	if r := c.match(p, displayName); r != nil {
		return r.result
	}
	return Result{}
}

// Actions are the actions of the rule that matched, as the gateway and /notifications want them; nil if none matched.
func (c *Compiled) Actions(p *Prepared, displayName string) json.RawMessage {
	r := c.match(p, displayName)
	if r == nil {
		return nil
	}
	actions, err := json.Marshal(r.actions)
	if err != nil {
		return nil
	}
	return actions
}

// match finds the first rule whose conditions all hold.
func (c *Compiled) match(p *Prepared, displayName string) *compiledRule {
	if p.event.Sender == c.user {
		return nil
	}
rules:
	for i := range c.rules.rules {
		r := &c.rules.rules[i]
		for j := range r.conditions {
			if !r.conditions[j].holds(p, c.user, displayName) {
				continue rules
			}
		}
		return r
	}
	return nil
}

func (c *condition) holds(p *Prepared, user matrix.UserID, displayName string) bool {
	switch c.kind {
	case stateKeyIsEmpty:
		return p.event.StateKey != nil && *p.event.StateKey == ""
	case propertyMatches, bodyMatches:
		v := p.property(c.key)
		if v.value.kind != isString {
			return false
		}
		switch {
		case c.glob != nil:
			return c.glob.MatchString(v.value.text[:min(len(v.value.text), maxGlobText)])
		case c.kind == bodyMatches:
			return containsWord(v.lower, c.literal)
		}
		return v.lower == c.literal
	case propertyIs:
		return p.property(c.key).value == c.value
	case propertyIsOwner:
		v := p.property(c.key)
		return v.value.kind == isString && strings.EqualFold(v.value.text, string(user))
	case propertyContains:
		for _, e := range p.property(c.key).elements {
			if e == c.value {
				return true
			}
		}
		return false
	case containsOwner:
		for i := range p.property(c.key).elements {
			if e := &p.property(c.key).elements[i]; e.kind == isString && e.text == string(user) {
				return true
			}
		}
		return false
	case containsName:
		body := p.property("content.body")
		return displayName != "" && body.value.kind == isString && containsWord(body.lower, strings.ToLower(displayName))
	case memberCount:
		return compare(p.room.Members, c.op, c.number)
	case senderMay:
		return p.senderMay(c.key)
	}
	return false
}

func (p *Prepared) senderMay(key string) bool {
	if may, ok := p.may[key]; ok {
		return may
	}
	may := p.room.SenderMayNotify != nil && p.room.SenderMayNotify(key)
	if p.may == nil {
		p.may = map[string]bool{}
	}
	p.may[key] = may
	return may
}

func compare(a int, op string, b int) bool {
	switch op {
	case "<":
		return a < b
	case ">":
		return a > b
	case "<=":
		return a <= b
	case ">=":
		return a >= b
	}
	return a == b
}

// containsWord reports whether word stands in text between word boundaries: the ends, or what is not A-Z, a-z, 0-9, _.
func containsWord(text, word string) bool {
	if word == "" {
		return false
	}
	for from := 0; ; {
		i := strings.Index(text[from:], word)
		if i < 0 {
			return false
		}
		start, end := from+i, from+i+len(word)
		if (start == 0 || !isWord(text[start-1])) && (end == len(text) || !isWord(text[end])) {
			return true
		}
		from = start + 1
	}
}

func isWord(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '_'
}
