package matrix

import (
	"bytes"
	"math"
	"sort"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxNesting is how deep arrays and objects may be nested. The spec has no limit; others stop at about 1,000.
const maxNesting = 1000

// CanonicalJSON appends raw to dst as canonical JSON, strictly: duplicate keys, invalid UTF-8, lone surrogates,
// floats, integers beyond ±(2^53−1) and nesting beyond 1,000 are refused. The error is a *Error, M_NOT_JSON if raw is
// no JSON and M_BAD_JSON if it has no canonical form. JSON that is canonical already is copied.
// Spec v1.19 appendices/#canonical-json
func CanonicalJSON(dst, raw []byte) ([]byte, error) { return canonicalJSON(dst, raw, false) }

// CanonicalJSONLoose is CanonicalJSON for room versions 1 to 5 and for what is not an event: numbers of any kind are
// let through. A whole number with an exponent is written out, other floats stay as they are.
func CanonicalJSONLoose(dst, raw []byte) ([]byte, error) { return canonicalJSON(dst, raw, true) }

func canonicalJSON(dst, raw []byte, loose bool) ([]byte, error) {
	s := scanner{b: raw, loose: loose, canonical: true}
	if err := s.document(); err != nil {
		return dst, err
	}
	if s.canonical {
		return append(dst, raw...), nil
	}
	w := rewriter{b: raw, out: dst}
	w.value()
	if w.err != nil {
		return dst, w.err
	}
	return w.out, nil
}

// scanner checks JSON in one pass and finds out whether it is canonical already.
type scanner struct {
	b         []byte
	i         int
	depth     int
	loose     bool
	canonical bool
}

// plain marks the bytes that stand for themselves in a string and need no look at what follows.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

func (s *scanner) document() error {
	s.space()
	if err := s.value(); err != nil {
		return err
	}
	s.space()
	if s.i != len(s.b) {
		return s.syntax("something follows the value")
	}
	return nil
}

func (s *scanner) syntax(what string) *Error {
	return NotJSON("not valid JSON at byte %d: %s", s.i, what)
}

// space skips white space, which canonical JSON has not.
func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
			s.canonical = false
		default:
			return
		}
	}
}

func (s *scanner) value() error {
	if s.i >= len(s.b) {
		return s.syntax("it ends where a value should be")
	}
	switch c := s.b[s.i]; {
	case c == '"':
		_, err := s.string()
		return err
	case c == '{':
		return s.object()
	case c == '[':
		return s.array()
	case c == '-' || '0' <= c && c <= '9':
		return s.number()
	case c == 't':
		return s.literal("true")
	case c == 'f':
		return s.literal("false")
	case c == 'n':
		return s.literal("null")
	}
	return s.syntax("no value starts like this")
}

func (s *scanner) literal(word string) error {
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		return s.syntax("no value starts like this")
	}
	s.i += len(word)
	return nil
}

func (s *scanner) enter() error {
	s.i++
	if s.depth++; s.depth > maxNesting {
		return BadJSON("the JSON is nested more than %d deep", maxNesting)
	}
	s.space()
	return nil
}

func (s *scanner) array() error {
	if err := s.enter(); err != nil {
		return err
	}
	if s.i < len(s.b) && s.b[s.i] == ']' {
		s.i++
		s.depth--
		return nil
	}
	for {
		if err := s.value(); err != nil {
			return err
		}
		s.space()
		if s.i >= len(s.b) {
			return s.syntax("an array is not closed")
		}
		switch s.b[s.i] {
		case ',':
			s.i++
			s.space()
		case ']':
			s.i++
			s.depth--
			return nil
		default:
			return s.syntax("neither a comma nor the end of the array")
		}
	}
}

func (s *scanner) object() error {
	if err := s.enter(); err != nil {
		return err
	}
	if s.i < len(s.b) && s.b[s.i] == '}' {
		s.i++
		s.depth--
		return nil
	}
	var last []byte
	for first := true; ; first = false {
		if s.i >= len(s.b) || s.b[s.i] != '"' {
			return s.syntax("no key where one should be")
		}
		key, err := s.string()
		if err != nil {
			return err
		}
		// Keys in strictly ascending order cannot repeat; otherwise the rewriter sorts them and finds what repeats.
		if !first && compareKeys(last, key) >= 0 {
			s.canonical = false
		}
		last = key
		s.space()
		if s.i >= len(s.b) || s.b[s.i] != ':' {
			return s.syntax("no colon after a key")
		}
		s.i++
		s.space()
		if err := s.value(); err != nil {
			return err
		}
		s.space()
		if s.i >= len(s.b) {
			return s.syntax("an object is not closed")
		}
		switch s.b[s.i] {
		case ',':
			s.i++
			s.space()
		case '}':
			s.i++
			s.depth--
			return nil
		default:
			return s.syntax("neither a comma nor the end of the object")
		}
	}
}

// compareKeys compares two raw keys by the code points that they stand for.
func compareKeys(a, b []byte) int {
	if bytes.IndexByte(a, '\\') >= 0 {
		a = appendUnquoted(nil, a)
	}
	if bytes.IndexByte(b, '\\') >= 0 {
		b = appendUnquoted(nil, b)
	}
	return bytes.Compare(a, b)
}

// string checks a string and returns what is between its quotes.
func (s *scanner) string() ([]byte, error) {
	b := s.b
	start := s.i + 1
	for i := start; i < len(b); {
		c := b[i]
		switch {
		case plain[c]:
			i++
		case c == '"':
			s.i = i + 1
			return b[start:i], nil
		case c == '\\':
			n, err := s.escape(i)
			if err != nil {
				return nil, err
			}
			i += n
		case c < 0x20:
			s.i = i
			return nil, s.syntax("a control character in a string")
		default:
			_, n := utf8.DecodeRune(b[i:])
			if n == 1 {
				s.i = i
				return nil, s.syntax("a string is not valid UTF-8")
			}
			i += n
		}
	}
	s.i = len(b)
	return nil, s.syntax("a string is not closed")
}

// escape checks the escape sequence at i, a surrogate pair counting as one, and returns its length.
func (s *scanner) escape(i int) (int, error) {
	if i+1 >= len(s.b) {
		return 0, s.syntax("a string is not closed")
	}
	switch s.b[i+1] {
	case '"', '\\', 'b', 'f', 'n', 'r', 't':
		return 2, nil
	case '/':
		s.canonical = false
		return 2, nil
	case 'u':
	default:
		s.i = i
		return 0, s.syntax("an unknown escape sequence")
	}
	r := hex4(s.b[i:])
	switch {
	case r < 0:
		s.i = i
		return 0, s.syntax("four hexadecimal digits must follow \\u")
	case !utf16.IsSurrogate(r):
		// Canonical are only control characters without a short escape, with small letters.
		if r >= 0x20 || shortEscape[r] != 0 || !isLowerHex(s.b[i+4]) || !isLowerHex(s.b[i+5]) {
			s.canonical = false
		}
		return 6, nil
	}
	s.canonical = false
	if i+6 < len(s.b) && utf16.DecodeRune(r, hex4(s.b[i+6:])) != utf8.RuneError {
		return 12, nil
	}
	return 0, BadJSON("a string has half of a surrogate pair")
}

// hex4 decodes the \uXXXX at the start of b; -1 if there is none.
func hex4(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

func isLowerHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }

// number checks a number. Strict: only integers, of at most 53 bits.
func (s *scanner) number() error {
	start := s.i
	if s.b[s.i] == '-' {
		s.i++
	}
	digits := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	switch n := s.i - digits; {
	case n == 0:
		return s.syntax("a number without digits")
	case n > 1 && s.b[digits] == '0':
		return s.syntax("a number starts with 0")
	case s.b[digits] == '0' && digits > start:
		s.canonical = false // -0 is written 0
	}
	isFloat, err := s.fraction()
	switch {
	case err != nil:
		return err
	case s.loose && isFloat:
		s.canonical = false
		return nil
	case s.loose:
		return nil
	case isFloat:
		return BadJSON("the number %s is not an integer", clip(s.b[start:s.i]))
	case !fits53(s.b[digits:s.i]):
		return BadJSON("the number %s does not fit into 53 bits", clip(s.b[start:s.i]))
	}
	return nil
}

// fraction skips what makes a number a float.
func (s *scanner) fraction() (isFloat bool, err error) {
	skip := func() error {
		from := s.i
		for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
			s.i++
		}
		if s.i == from {
			return s.syntax("digits are missing in a number")
		}
		return nil
	}
	if s.i < len(s.b) && s.b[s.i] == '.' {
		s.i++
		isFloat = true
		if err := skip(); err != nil {
			return true, err
		}
	}
	if s.i < len(s.b) && s.b[s.i]|0x20 == 'e' {
		s.i++
		isFloat = true
		if s.i < len(s.b) && (s.b[s.i] == '+' || s.b[s.i] == '-') {
			s.i++
		}
		if err := skip(); err != nil {
			return true, err
		}
	}
	return isFloat, nil
}

// fits53 reports whether the digits, without leading zeros, are at most 2^53-1.
func fits53(digits []byte) bool {
	const largest = "9007199254740991"
	return len(digits) < len(largest) || len(digits) == len(largest) && string(digits) <= largest
}

func clip(b []byte) []byte {
	if len(b) > 40 {
		return b[:40]
	}
	return b
}

// rewriter writes checked JSON in its canonical form.
type rewriter struct {
	b   []byte
	i   int
	out []byte
	err *Error
}

func (w *rewriter) space() {
	for w.i < len(w.b) && (w.b[w.i] == ' ' || w.b[w.i] == '\n' || w.b[w.i] == '\t' || w.b[w.i] == '\r') {
		w.i++
	}
}

func (w *rewriter) value() {
	w.space()
	switch c := w.b[w.i]; {
	case c == '"':
		w.out = appendQuoted(w.out, unquoteRaw(w.rawString()))
	case c == '{':
		w.object()
	case c == '[':
		w.array()
	case c == '-' || '0' <= c && c <= '9':
		w.number()
	default:
		start := w.i
		for w.i < len(w.b) && 'a' <= w.b[w.i] && w.b[w.i] <= 'z' {
			w.i++
		}
		w.out = append(w.out, w.b[start:w.i]...)
	}
	w.space()
}

// rawString is what is between the quotes of the string at i.
func (w *rewriter) rawString() []byte {
	start := w.i + 1
	w.i = skipString(w.b, w.i)
	return w.b[start : w.i-1]
}

func (w *rewriter) array() {
	w.i++
	w.out = append(w.out, '[')
	w.space()
	for w.b[w.i] != ']' && w.err == nil {
		if w.b[w.i] == ',' {
			w.i++
			w.out = append(w.out, ',')
		}
		w.value()
	}
	w.i++
	w.out = append(w.out, ']')
}

// object writes the members as they come and puts them in order afterwards, if they are not.
func (w *rewriter) object() {
	type member struct {
		key        []byte
		start, end int // of "key":value in out
	}
	var members []member
	sorted := true
	w.i++
	w.out = append(w.out, '{')
	body := len(w.out)
	w.space()
	for w.b[w.i] != '}' && w.err == nil {
		if w.b[w.i] == ',' {
			w.i++
			w.space()
			w.out = append(w.out, ',')
		}
		m := member{key: unquoteRaw(w.rawString()), start: len(w.out)}
		w.out = append(appendQuoted(w.out, m.key), ':')
		w.space()
		w.i++ // the colon
		w.value()
		m.end = len(w.out)
		if n := len(members); n > 0 && bytes.Compare(members[n-1].key, m.key) >= 0 {
			sorted = false
		}
		members = append(members, m)
	}
	w.i++
	if w.err == nil && !sorted {
		sort.SliceStable(members, func(i, j int) bool { return bytes.Compare(members[i].key, members[j].key) < 0 })
		unordered := append([]byte(nil), w.out[body:]...)
		w.out = w.out[:body]
		for i, m := range members {
			if i > 0 {
				if bytes.Equal(m.key, members[i-1].key) {
					w.err = BadJSON("the key %q occurs twice in an object", clip(m.key))
					return
				}
				w.out = append(w.out, ',')
			}
			w.out = append(w.out, unordered[m.start-body:m.end-body]...)
		}
	}
	w.out = append(w.out, '}')
}

func (w *rewriter) number() {
	start := w.i
	for w.i < len(w.b) && (w.b[w.i] >= '0' && w.b[w.i] <= '9' || bytes.IndexByte([]byte("+-.eE"), w.b[w.i]) >= 0) {
		w.i++
	}
	w.out = appendNumber(w.out, w.b[start:w.i])
}

func appendNumber(dst, n []byte) []byte {
	if string(n) == "-0" {
		return append(dst, '0')
	}
	if bytes.IndexByte(n, 'e') >= 0 || bytes.IndexByte(n, 'E') >= 0 {
		if f, err := strconv.ParseFloat(string(n), 64); err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<63 {
			return strconv.AppendInt(dst, int64(f), 10)
		}
	}
	return append(dst, n...)
}

// shortEscape holds the letters of the two-byte escapes of control characters.
var shortEscape = [0x20]byte{'\b': 'b', '\t': 't', '\n': 'n', '\f': 'f', '\r': 'r'}

// AppendJSONString appends s as a canonical JSON string, quotes included; invalid UTF-8 becomes U+FFFD.
func AppendJSONString(dst []byte, s string) []byte {
	if !utf8.ValidString(s) {
		s = string(bytes.ToValidUTF8([]byte(s), []byte("\ufffd")))
	}
	return appendQuoted(dst, s)
}

// appendQuoted appends valid UTF-8 as a canonical JSON string.
func appendQuoted[T string | []byte](dst []byte, s T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if plain[c] || c >= utf8.RuneSelf {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case shortEscape[c] != 0:
			dst = append(dst, '\\', shortEscape[c])
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// unquoteRaw decodes the checked inside of a string, without a copy if it has no escapes.
func unquoteRaw(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	return appendUnquoted(make([]byte, 0, len(raw)), raw)
}

// appendUnquoted decodes the checked inside of a string.
func appendUnquoted(dst, raw []byte) []byte {
	for i := 0; i < len(raw); {
		c := raw[i]
		if c != '\\' || i+1 == len(raw) {
			dst = append(dst, c)
			i++
			continue
		}
		i += 2
		switch e := raw[i-1]; e {
		case 'b':
			dst = append(dst, '\b')
		case 't':
			dst = append(dst, '\t')
		case 'n':
			dst = append(dst, '\n')
		case 'f':
			dst = append(dst, '\f')
		case 'r':
			dst = append(dst, '\r')
		case 'u':
			r := hex4(raw[i-2:])
			i += 4
			if utf16.IsSurrogate(r) && i <= len(raw) {
				r = utf16.DecodeRune(r, hex4(raw[i:]))
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, e)
		}
	}
	return dst
}
