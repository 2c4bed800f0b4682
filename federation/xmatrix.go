package federation

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"parley.im/parley/server/matrix"
)

// maxAuthorization bounds an X-Matrix header: two server names of 255 bytes, a key ID and a signature fit well.
const maxAuthorization = 2048

// xMatrix is an Authorization header of the scheme X-Matrix.
// Spec v1.19 server-server-api/#request-authentication
type xMatrix struct {
	Origin      matrix.ServerName
	Destination matrix.ServerName // empty where an old server left it out
	KeyID       matrix.KeyID
	Signature   []byte // 64 bytes
}

// header is the value to send. Names are lower case, without spaces or backslashes, as old servers want it.
func (x xMatrix) header() string {
	destination := ""
	if x.Destination != "" { // ours always have one
		destination = fmt.Sprintf(`destination="%s",`, x.Destination)
	}
	return fmt.Sprintf(`X-Matrix origin="%s",%skey="%s",sig="%s"`,
		x.Origin, destination, x.KeyID, base64.RawStdEncoding.EncodeToString(x.Signature))
}

// signXMatrix signs a request that will be sent to destination. uri is the escaped path with the query; content is
// the body, which must be JSON, or nil.
func signXMatrix(method, uri string, content []byte, origin, destination matrix.ServerName, key *matrix.SigningKey) (xMatrix, error) {
	payload, err := xMatrixPayload(method, uri, content, origin, destination)
	if err != nil {
		return xMatrix{}, err
	}
	return xMatrix{Origin: origin, Destination: destination, KeyID: key.ID, Signature: key.Sign(payload)}, nil
}

// verify checks the signature of a request that we received with this header.
func (x xMatrix) verify(method, uri string, content []byte, key *matrix.PublicKey) error {
	payload, err := xMatrixPayload(method, uri, content, x.Origin, x.Destination)
	if err != nil {
		return err
	}
	if !key.Verify(payload, x.Signature) {
		return errors.New("the X-Matrix signature is not of this request")
	}
	return nil
}

// xMatrixPayload is the canonical JSON that is signed. An origin that sent no destination signed none.
func xMatrixPayload(method, uri string, content []byte, origin, destination matrix.ServerName) ([]byte, error) {
	var b []byte
	b = append(b, '{')
	if len(content) > 0 {
		var err error
		b = append(b, `"content":`...)
		if b, err = matrix.CanonicalJSONLoose(b, content); err != nil {
			return nil, fmt.Errorf("the body is no JSON that can be signed: %w", err)
		}
		b = append(b, ',')
	}
	if destination != "" {
		b = appendMember(b, "destination", string(destination))
	}
	b = appendMember(b, "method", method)
	b = appendMember(b, "origin", string(origin))
	b = appendMember(b, "uri", uri)
	b[len(b)-1] = '}'
	return b, nil
}

func appendMember(b []byte, name, value string) []byte {
	b = append(matrix.AppendJSONString(b, name), ':')
	return append(matrix.AppendJSONString(b, value), ',')
}

// parseXMatrix reads an Authorization header. Parameters may be quoted or tokens, in any order and case; unknown ones
// are ignored, but none may come twice.
func parseXMatrix(header string) (xMatrix, error) {
	var x xMatrix
	if len(header) > maxAuthorization {
		return x, fmt.Errorf("the Authorization header is longer than %d bytes", maxAuthorization)
	}
	scheme, rest, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "X-Matrix") {
		return x, errors.New("the Authorization scheme is not X-Matrix")
	}
	params, err := parseAuthParams(rest)
	if err != nil {
		return x, err
	}
	if x.Origin, err = matrix.ParseServerName(params["origin"]); err != nil {
		return x, fmt.Errorf("origin: %w", err)
	}
	if d, ok := params["destination"]; ok {
		if x.Destination, err = matrix.ParseServerName(d); err != nil {
			return x, fmt.Errorf("destination: %w", err)
		}
	}
	if x.KeyID, err = matrix.ParseKeyID(params["key"]); err != nil {
		return x, fmt.Errorf("key: %w", err)
	}
	x.Signature, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(params["sig"], "="))
	if err != nil || len(x.Signature) != ed25519.SignatureSize {
		return x, errors.New("sig is not 64 bytes in base64")
	}
	return x, nil
}

// parseAuthParams reads the comma-separated parameters of an authentication scheme. Names come back in lower case.
// RFC 9110, section 11.4; colons are allowed in unquoted values, as the spec asks for the sake of old servers, and
// so are the letters of base64 and IPv6 literals.
func parseAuthParams(s string) (map[string]string, error) {
	params := map[string]string{}
	for {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			return params, nil
		}
		name, rest, ok := strings.Cut(s, "=")
		name = strings.ToLower(strings.TrimRight(name, " \t"))
		if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return !isToken(r) }) {
			return nil, errors.New("malformed Authorization parameter")
		}
		var value string
		rest = strings.TrimLeft(rest, " \t")
		if strings.HasPrefix(rest, `"`) {
			if value, s, ok = unquote(rest); !ok {
				return nil, fmt.Errorf("the quotes of %s do not close", name)
			}
		} else {
			end := strings.IndexFunc(rest, func(r rune) bool { return !isToken(r) && !strings.ContainsRune(":/=[]", r) })
			if end < 0 {
				end = len(rest)
			}
			value, s = rest[:end], rest[end:]
		}
		if s = strings.TrimLeft(s, " \t"); s != "" && s[0] != ',' {
			return nil, fmt.Errorf("something follows the value of %s", name)
		}
		if hasControl(value) {
			return nil, fmt.Errorf("control character in %s", name)
		}
		if _, seen := params[name]; seen {
			return nil, fmt.Errorf("%s is given twice", name)
		}
		params[name] = value
	}
}

// unquote reads the quoted string at the start of s, without its backslashes.
func unquote(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// isToken: RFC 9110, section 5.6.2.
func isToken(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}
