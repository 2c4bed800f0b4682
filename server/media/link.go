package media

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
)

// LinkLasts is how long a link to a file can be used: long enough to play a long message and to go on after a pause.
const LinkLasts = time.Hour

// linkFact is the database's name for the secret that links are signed with.
const linkFact = "media_link_secret"

// A link is a path that lets whoever has it read one file for a while, for <audio> elements, which cannot send an access
// token. It is signed over all that it grants.

// Link signs a link to a file, in another container if that is asked for, and says until when it can be used. The
// query goes with the file's URI to OpenLink.
func (r *Repository) Link(ctx context.Context, uri URI, container audio.Container) (query url.Values, expires time.Time, err error) {
	expires = r.Now().Add(LinkLasts).Truncate(time.Millisecond)
	query = url.Values{"expires": {strconv.FormatInt(expires.UnixMilli(), 10)}}
	if container != "" {
		query.Set("container", string(container))
	}
	signature, err := r.signLink(ctx, uri, query)
	if err != nil {
		return nil, expires, err
	}
	query.Set("signature", base64.RawURLEncoding.EncodeToString(signature))
	return query, expires, nil
}

// OpenLink opens the file that a link leads to. It is M_FORBIDDEN for a link that was not made here, or not for this, or
// that has expired; else as Open.
func (r *Repository) OpenLink(ctx context.Context, uri URI, query url.Values) (*File, error) {
	given, err := base64.RawURLEncoding.DecodeString(query.Get("signature"))
	if err != nil {
		return nil, matrix.Forbidden("this link is not valid")
	}
	want, err := r.signLink(ctx, uri, query)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(given, want) {
		return nil, matrix.Forbidden("this link is not valid")
	}
	expires, err := strconv.ParseInt(query.Get("expires"), 10, 64)
	if err != nil || !r.Now().Before(time.UnixMilli(expires)) {
		return nil, matrix.Forbidden("this link has expired")
	}
	return r.Open(ctx, Request{URI: uri, Wait: DefaultWait, Container: audio.Container(query.Get("container"))})
}

func (r *Repository) signLink(ctx context.Context, uri URI, query url.Values) ([]byte, error) {
	secret, err := r.linkSecret(ctx)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret)
	// None of the parts can hold a line break.
	fmt.Fprintf(mac, "%s\n%s\n%s", uri, query.Get("expires"), query.Get("container"))
	return mac.Sum(nil), nil
}

// linkSecret makes the secret when it is first needed. It is the same for all processes and after a restart.
func (r *Repository) linkSecret(ctx context.Context) ([]byte, error) {
	r.mu.Lock()
	secret := r.linkKey
	r.mu.Unlock()
	if secret != nil {
		return secret, nil
	}
	fresh := make([]byte, 32)
	rand.Read(fresh)
	stored, err := r.DB.InitFact(ctx, linkFact, base64.RawStdEncoding.EncodeToString(fresh))
	if err != nil {
		return nil, fmt.Errorf("load the secret of links: %w", err)
	}
	if secret, err = base64.RawStdEncoding.DecodeString(stored); err != nil {
		return nil, fmt.Errorf("load the secret of links: %w", err)
	}
	r.mu.Lock()
	r.linkKey = secret
	r.mu.Unlock()
	return secret, nil
}
