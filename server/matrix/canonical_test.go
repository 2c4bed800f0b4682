package matrix

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The examples of spec v1.19 appendices/#examples.
var canonicalExamples = [][2]string{
	{`{}`, `{}`},
	{"{\n    \"one\": 1,\n    \"two\": \"Two\"\n}", `{"one":1,"two":"Two"}`},
	{`{"b": "2", "a": "1"}`, `{"a":"1","b":"2"}`},
	{`{"b":"2","a":"1"}`, `{"a":"1","b":"2"}`},
	{`{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe", "three_pids": [
		{"medium": "email", "address": "john.doe@example.org"}, {"medium": "msisdn", "address": "123456789"}]}}}`,
		`{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`},
	{`{"a": "日本語"}`, `{"a":"日本語"}`},
	{`{"本": 2, "日": 1}`, `{"日":1,"本":2}`},
	{`{"a": "\u65E5"}`, `{"a":"日"}`},
	{`{"a": null}`, `{"a":null}`},
}

func TestCanonicalJSON(t *testing.T) {
	for _, c := range append(canonicalExamples, [][2]string{
		{`{"a": -0}`, `{"a":0}`},
		{`[1,-1,9007199254740991,-9007199254740991]`, `[1,-1,9007199254740991,-9007199254740991]`},
		{`{"\u0061\/":"\u001F\u0008\u000a\u007f\ud83d\ude00"}`, "{\"a/\":\"\\u001f\\b\\n\x7f😀\"}"},
		{`{"a\"b":1}`, `{"a\"b":1}`},
		// By code points, not by UTF-16 as in RFC 8785: U+FB33 before U+1F600.
		{`{"😀":1,"דּ":2}`, `{"דּ":2,"😀":1}`},
		// By what the keys stand for, not by their escapes: " is below #, though its escape is above.
		{`{"#":1,"\"":2}`, `{"\"":2,"#":1}`},
		{`{"\"":2,"#":1}`, `{"\"":2,"#":1}`},
		{`{"b":{"d":1,"c":[{"z":1,"y":2}]},"a":1}`, `{"a":1,"b":{"c":[{"y":2,"z":1}],"d":1}}`},
		{" \t\r\n[ ] ", `[]`},
	}...) {
		for name, canonical := range map[string]func(dst, raw []byte) ([]byte, error){"strict": CanonicalJSON, "loose": CanonicalJSONLoose} {
			got, err := canonical([]byte("x"), []byte(c[0]))
			if err != nil || string(got) != "x"+c[1] {
				t.Errorf("%s, %s: got %s, %v", c[0], name, got, err)
			}
		}
	}
}

func TestCanonicalJSONRefuses(t *testing.T) {
	for in, code := range map[string]string{
		``: "M_NOT_JSON", `{`: "M_NOT_JSON", `{"a"}`: "M_NOT_JSON", `{"a":1,}`: "M_NOT_JSON", `[1,]`: "M_NOT_JSON", `[1 2]`: "M_NOT_JSON",
		`{} {}`: "M_NOT_JSON", `tru`: "M_NOT_JSON", `nul`: "M_NOT_JSON", `01`: "M_NOT_JSON", `-`: "M_NOT_JSON", `1.`: "M_NOT_JSON",
		`1e`: "M_NOT_JSON", `.5`: "M_NOT_JSON", `+1`: "M_NOT_JSON", `NaN`: "M_NOT_JSON", "\"\n\"": "M_NOT_JSON", `"\x"`: "M_NOT_JSON",
		`"\u12g4"`: "M_NOT_JSON", `"\u12"`: "M_NOT_JSON", `"abc`: "M_NOT_JSON", `"abc\`: "M_NOT_JSON", "\"\xff\"": "M_NOT_JSON",
		"\"\xed\xa0\x80\"": "M_NOT_JSON", "\ufeff{}": "M_NOT_JSON", `{a:1}`: "M_NOT_JSON", `{"a":1 "b":2}`: "M_NOT_JSON",
		`"\ud800"`: "M_BAD_JSON", `"\udc00\ud800"`: "M_BAD_JSON", `"\ud800\u0041"`: "M_BAD_JSON", `"\ud800x"`: "M_BAD_JSON",
		`{"a":1,"a":2}`: "M_BAD_JSON", `{"a":1,"b":1,"a":2}`: "M_BAD_JSON", `{"a":1,"\u0061":2}`: "M_BAD_JSON", `[{"x":{"k":1,"k":1}}]`: "M_BAD_JSON",
		strings.Repeat("[", 1001) + strings.Repeat("]", 1001): "M_BAD_JSON",
	} {
		for _, canonical := range []func(dst, raw []byte) ([]byte, error){CanonicalJSON, CanonicalJSONLoose} {
			if got, err := canonical(nil, []byte(in)); ErrorCode(err) != code {
				t.Errorf("%.40q: got %s, %v, want %s", in, got, err, code)
			}
		}
	}
}

func TestFloatsAndLargeIntegersAreCanonicalInOldRoomVersionsOnly(t *testing.T) {
	for in, loose := range map[string]string{
		`1.0`: `1.0`, `1.5`: `1.5`, `-0.0`: `-0.0`, `1e10`: `10000000000`, `1E5`: `100000`, `1.5e1`: `15`, `1e-7`: `1e-7`,
		`9007199254740992`: `9007199254740992`, `-9007199254740992`: `-9007199254740992`, `123456789012345678901234567890`: `123456789012345678901234567890`,
	} {
		if got, err := CanonicalJSON(nil, []byte(in)); ErrorCode(err) != "M_BAD_JSON" {
			t.Errorf("%s, strict: got %s, %v", in, got, err)
		}
		if got, err := CanonicalJSONLoose(nil, []byte(in)); err != nil || string(got) != loose {
			t.Errorf("%s, loose: got %s, %v, want %s", in, got, err, loose)
		}
	}
	// The last example of the spec.
	if got, err := CanonicalJSONLoose(nil, []byte(`{"a": -0, "b": 1e10}`)); err != nil || string(got) != `{"a":0,"b":10000000000}` {
		t.Errorf("got %s, %v", got, err)
	}
}

// anyJSON draws a value that has a canonical form.
func anyJSON(depth int) *rapid.Generator[any] {
	leaves := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.Int64Range(minInt53, maxInt53).AsAny(), rapid.String().AsAny(),
	}
	if depth == 0 {
		return rapid.OneOf(leaves...)
	}
	return rapid.OneOf(append(leaves,
		rapid.SliceOfN(rapid.Deferred(func() *rapid.Generator[any] { return anyJSON(depth - 1) }), 0, 5).AsAny(),
		rapid.MapOfN(rapid.String(), rapid.Deferred(func() *rapid.Generator[any] { return anyJSON(depth - 1) }), 0, 5).AsAny())...)
}

func TestCanonicalFormIsOneForAllSpellings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := anyJSON(3).Draw(t, "value")
		indented, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		first, err := CanonicalJSON(nil, indented)
		if err != nil {
			t.Fatal(err)
		}
		again, err := CanonicalJSON(nil, first)
		if err != nil || !bytes.Equal(first, again) {
			t.Fatalf("%s is not its own canonical form: %s, %v", first, again, err)
		}
		var back any
		d := json.NewDecoder(bytes.NewReader(first))
		d.UseNumber()
		if err := d.Decode(&back); err != nil {
			t.Fatal(err)
		}
		compact, _ := json.Marshal(back)
		if once, err := CanonicalJSON(nil, compact); err != nil || !bytes.Equal(first, once) {
			t.Fatalf("%s became %s, %v", first, once, err)
		}
	})
}

func FuzzCanonicalJSON(f *testing.F) {
	for _, c := range canonicalExamples {
		f.Add([]byte(c[0]))
	}
	f.Add([]byte(`{"a":1,"\u0061":2}`))
	f.Add([]byte(`["\ud83d\ude00",1e5,-0.1,{"":[{}]}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		strict, err := CanonicalJSON(nil, raw)
		loose, errLoose := CanonicalJSONLoose(nil, raw)
		if err == nil && (errLoose != nil || !bytes.Equal(strict, loose)) {
			t.Fatalf("%q: strict %s, loose %s %v", raw, strict, loose, errLoose)
		}
		if errLoose != nil {
			return
		}
		if !json.Valid(raw) || !json.Valid(loose) {
			t.Fatalf("%q is not valid JSON, but has the form %q", raw, loose)
		}
		again, err := CanonicalJSONLoose(nil, loose)
		if err != nil || !bytes.Equal(again, loose) {
			t.Fatalf("%q is not its own form: %q, %v", loose, again, err)
		}
		var a, b any
		if json.Unmarshal(raw, &a) == nil && json.Unmarshal(loose, &b) == nil {
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			if !bytes.Equal(x, y) && !bytes.Contains(raw, []byte("-0")) {
				t.Fatalf("%q means %s, its form %q means %s", raw, x, loose, y)
			}
		}
		// The walkers must get through what is canonical, and through anything without a panic.
		if len(loose) > 0 && loose[0] == '{' && !members(loose, func(_, _ []byte) bool { return true }) {
			t.Fatalf("%q cannot be walked", loose)
		}
		members(raw, func(k, v []byte) bool { elements(v, func([]byte) bool { return true }); return true })
	})
}

func FuzzWalkersNeverPanic(f *testing.F) {
	f.Add([]byte(`{"a":[1,"x\"]`))
	f.Add([]byte(`{"type":"m.room.member","content":{"membership":"join"},"prev_events":[["$a:b",{}]]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		members(raw, func(_, v []byte) bool {
			members(v, func(_, _ []byte) bool { return true })
			elements(v, func([]byte) bool { return true })
			stringValue(v)
			return true
		})
		for _, v := range RoomVersions() {
			if e, err := LoadEvent(bytes.Clone(raw), v, "$id"); err == nil {
				e.AppendClient(nil, nil)
				e.Redact()
				e.AuthKeys()
			}
		}
	})
}
