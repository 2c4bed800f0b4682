package federation

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"parley.im/parley/server/matrix"
)

// Probe looks at a server as others would see it, from here: where discovery leads, whether the certificate is good there, and
// which signing keys are published. It asks anonymously and stores nothing. report is called for each step, with what was found
// or the error that ended the probe; keys are those that server published.
func Probe(ctx context.Context, cfg Config, server matrix.ServerName, report func(step, found string, err error)) (keys []matrix.KeyID) {
	guard, err := NewGuard(cfg.AllowPrivateAddresses, cfg.AllowAddresses)
	if err != nil {
		report("configuration", "", err)
		return nil
	}
	roots, err := cfg.roots()
	if err != nil {
		report("certificate authorities", "", err)
		return nil
	}
	plain := NewGuardedTransport(guard, nil)
	plain.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	defer plain.CloseIdleConnections()
	d := newDiscovery(nil, &http.Client{Transport: plain, CheckRedirect: checkRedirect}, time.Now)
	t, err := d.find(ctx, server)
	if err != nil {
		report("discovery", "", fmt.Errorf("%w; set DNS or /.well-known/matrix/server as docs/operations.md says", err))
		return nil
	}
	report("discovery", fmt.Sprintf("other servers connect to %s and expect a certificate for %s", strings.Join(t.dial, ", "), t.tlsName), nil)
	transport := &http.Transport{DialTLSContext: (&serverDialer{guard.Dialer(nil), d, roots}).dial}
	defer transport.CloseIdleConnections()
	for _, step := range []struct{ name, path string }{{"version", "/_matrix/federation/v1/version"}, {"signing keys", "/_matrix/key/v2/server"}} {
		body, err := anonymousGet(ctx, transport, server, t.host, step.path)
		if err != nil {
			report(step.name, "", err)
			return nil
		}
		if step.name == "version" {
			report(step.name, string(bytes.TrimSpace(body)), nil)
			continue
		}
		var answer serverKeys
		if err := json.Unmarshal(body, &answer); err != nil {
			report(step.name, "", err)
			return nil
		}
		var names []string
		for id := range answer.VerifyKeys {
			keys = append(keys, id)
			names = append(names, string(id))
		}
		report(step.name, strings.Join(names, ", "), nil)
	}
	return keys
}

func anonymousGet(ctx context.Context, transport *http.Transport, server matrix.ServerName, host, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+poolHost(server)+path, nil)
	if err != nil {
		return nil, err
	}
	r.Host = host
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s: does the reverse proxy pass /_matrix on?", path, answer.Status)
	}
	return body, err
}
