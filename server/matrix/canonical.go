package matrix

// CanonicalJSON appends raw to dst as canonical JSON, strictly: duplicate keys, invalid UTF-8, lone surrogates,
// floats and integers beyond ±(2^53−1) are refused, nesting beyond 512 as well. The error is a *Error (M_BAD_JSON or M_NOT_JSON).
// Spec v1.19 appendices/#canonical-json
func CanonicalJSON(dst, raw []byte) ([]byte, error) { return nil, errNotImplemented }

// CanonicalJSONLoose is CanonicalJSON for room versions 1 to 5: numbers of any kind are let through.
func CanonicalJSONLoose(dst, raw []byte) ([]byte, error) { return nil, errNotImplemented }

// AppendJSONString appends s as a canonical JSON string; invalid UTF-8 becomes U+FFFD.
func AppendJSONString(dst []byte, s string) []byte { return dst }
