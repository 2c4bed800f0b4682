package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"
)

var (
	xMatrix   = regexp.MustCompile(`^X-Matrix .*origin="?([^",]+)"?.*`)
	parameter = regexp.MustCompile(`(\w+)=(?:"([^"]*)"|(\d+))`)
)

// check looks at one request between servers as somebody on the wire would, with nothing of Parley's own code: X-Matrix is there, and
// the HTTP Signature is valid, made with the published key of the same server, and covers the body, the time and the path.
func (tap *wireTap) check(r *http.Request, body []byte) error {
	authorization := xMatrix.FindStringSubmatch(r.Header.Get("Authorization"))
	if authorization == nil {
		return errors.New("no X-Matrix")
	}
	hash := sha256.Sum256(body)
	if want := "SHA-256=" + base64.StdEncoding.EncodeToString(hash[:]); r.Header.Get("Digest") != want {
		return fmt.Errorf("Digest is %q, should be %q", r.Header.Get("Digest"), want)
	}
	date, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil || time.Since(date).Abs() > time.Minute {
		return fmt.Errorf("Date is %q", r.Header.Get("Date"))
	}
	p := map[string]string{}
	for _, m := range parameter.FindAllStringSubmatch(r.Header.Get("Signature"), -1) {
		p[m[1]] = m[2] + m[3]
	}
	server, keyID, ok := strings.Cut(p["keyId"], "|")
	if !ok || server != authorization[1] {
		return fmt.Errorf("keyId %q does not belong to %s", p["keyId"], authorization[1])
	}
	var text []string
	for _, name := range strings.Fields(p["headers"]) {
		value := ""
		switch name {
		case "(request-target)":
			value = strings.ToLower(r.Method) + " " + r.URL.RequestURI()
		case "(created)":
			value = p["created"]
		case "(expires)":
			value = p["expires"]
		case "host":
			value = r.Host
		default:
			value = strings.Join(r.Header.Values(name), ", ")
		}
		text = append(text, name+": "+value)
	}
	for _, name := range []string{"(request-target)", "(created)", "(expires)", "host", "date", "digest"} {
		if !strings.Contains(" "+p["headers"]+" ", " "+name+" ") {
			return fmt.Errorf("%s is not signed: %q", name, p["headers"])
		}
	}
	key, err := tap.keys(server, keyID)
	if err != nil {
		return err
	}
	signature, err := base64.StdEncoding.DecodeString(p["signature"])
	if err != nil || len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, []byte(strings.Join(text, "\n")), signature) {
		return errors.New("the HTTP Signature is not valid")
	}
	return nil
}
