package matrix

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unsafe"
)

// What follows walks JSON that is canonical: checked by CanonicalJSON, or written by us. On other bytes it gives wrong
// answers or none, but never panics.

// skipString returns the index after the string that starts at i; len(b)+1 if it does not end.
func skipString(b []byte, i int) int {
	for i++; i < len(b); {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			break
		}
		i += n + 1
		// A quote after an odd number of backslashes is part of the string.
		back := 0
		for j := i - 2; j >= 0 && b[j] == '\\'; j-- {
			back++
		}
		if back%2 == 0 {
			return i
		}
	}
	return len(b) + 1
}

// skipValue returns the index after the value that starts at i; more than len(b) if it does not end.
func skipValue(b []byte, i int) int {
	if i >= len(b) {
		return len(b) + 1
	}
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
	default:
		for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' {
			i++
		}
		return i
	}
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
		i++
	}
	return len(b) + 1
}

// members walks the members of an object: for each it calls f with the raw key, without quotes, and the value, until f
// returns false. It reports whether it got to the end of the object.
func members(object []byte, f func(key, value []byte) bool) bool {
	if len(object) < 2 || object[0] != '{' {
		return false
	}
	for i := 1; ; i++ {
		if i >= len(object) || object[i] != '"' {
			return i == 1 && i < len(object) && object[i] == '}'
		}
		end := skipString(object, i)
		if end >= len(object) || object[end] != ':' {
			return false
		}
		next := skipValue(object, end+1)
		if next >= len(object) || next == end+1 {
			return false
		}
		if !f(object[i+1:end-1], object[end+1:next]) {
			return false
		}
		if i = next; object[i] == '}' {
			return true
		}
	}
}

// elements walks an array as members walks an object.
func elements(array []byte, f func(value []byte) bool) bool {
	if len(array) < 2 || array[0] != '[' {
		return false
	}
	if array[1] == ']' {
		return true
	}
	for i := 1; ; {
		next := skipValue(array, i)
		if next >= len(array) || next == i || !f(array[i:next]) {
			return false
		}
		if array[next] == ']' {
			return true
		}
		i = next + 1
	}
}

// member is the value of a key of an object, nil if it has none or is no object. The key must need no escape.
func member(object []byte, key string) (value []byte) {
	members(object, func(k, v []byte) bool {
		if string(k) == key {
			value = v
			return false
		}
		return true
	})
	return value
}

// stringValue decodes a string; ok is false for any other value. The result shares memory with value if it can.
func stringValue(value []byte) (s string, ok bool) {
	if len(value) < 2 || value[0] != '"' {
		return "", false
	}
	return unsafeString(unquoteRaw(value[1 : len(value)-1])), true
}

// stringMember is the string that an object has for a key; "" and false if it is something else.
func stringMember(object []byte, key string) (string, bool) { return stringValue(member(object, key)) }

// intValue decodes an integer.
func intValue(value []byte) (int64, bool) {
	if len(value) == 0 || value[0] != '-' && (value[0] < '0' || value[0] > '9') {
		return 0, false
	}
	n, err := strconv.ParseInt(unsafeString(value), 10, 64)
	return n, err == nil
}

// unsafeString gives bytes that nobody will write to any more as a string.
func unsafeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// appendMember appends `,"key":` or `"key":` if dst ends in an opening brace. The key must need no escape.
func appendKey(dst []byte, key string) []byte {
	if n := len(dst); n > 0 && dst[n-1] != '{' {
		dst = append(dst, ',')
	}
	dst = append(dst, '"')
	dst = append(dst, key...)
	return append(dst, '"', ':')
}

// setMember returns a canonical object with a member set, which stays canonical. Strange keys are escaped.
func setMember(object []byte, key string, value []byte) []byte {
	out := make([]byte, 0, len(object)+len(key)+len(value)+8)
	out = append(out, '{')
	quoted := AppendJSONString(nil, key)
	done := false
	put := func() {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, quoted...), ':'), value...)
		done = true
	}
	members(object, func(k, v []byte) bool {
		if !done {
			switch c := compareKeys(k, quoted[1:len(quoted)-1]); {
			case c == 0:
				put()
				return true
			case c > 0:
				put()
			}
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(append(out, '"'), k...), '"', ':'), v...)
		return true
	})
	if !done {
		put()
	}
	return append(out, '}')
}

// without appends a canonical object but for some members.
func appendWithout(dst, object []byte, drop func(key []byte) bool) []byte {
	dst = append(dst, '{')
	start := len(dst)
	members(object, func(k, v []byte) bool {
		if drop(k) {
			return true
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(append(append(append(dst, '"'), k...), '"', ':'), v...)
		return true
	})
	return append(dst, '}')
}

func isObject(value json.RawMessage) bool { return len(value) > 0 && value[0] == '{' }
