package media

import (
	"io"
	"maps"
	"net/url"
	"testing"
	"time"

	"parley.im/parley/server/audio"
)

func TestLinkOpensOneFileForAWhile(t *testing.T) {
	w := newWorld(t, nil)
	uri, other := w.voice(t, speech(t)), w.upload(t, file("other"))
	query, expires, err := w.Link(t.Context(), uri, audio.MP4)
	if err != nil || !expires.Equal(w.now.Add(LinkLasts)) {
		t.Fatal(expires, err)
	}
	f, err := w.OpenLink(t.Context(), uri, query)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(f); err != nil || f.ContentType != "audio/mp4" {
		t.Error(f.ContentType, err)
	}
	f.Close()

	_, err = w.OpenLink(t.Context(), other, query)
	wantCode(t, err, 403, "M_FORBIDDEN")
	for _, change := range [][2]string{{"expires", "9999999999999"}, {"container", "ogg"}, {"container", ""}, {"signature", ""}, {"signature", "eA"}} {
		changed := url.Values(maps.Clone(query))
		changed.Set(change[0], change[1])
		_, err = w.OpenLink(t.Context(), uri, changed)
		wantCode(t, err, 403, "M_FORBIDDEN")
	}
	w.pass(LinkLasts)
	_, err = w.OpenLink(t.Context(), uri, query)
	wantCode(t, err, 403, "M_FORBIDDEN")

	// Another process on the same database makes the same links.
	same := New(Options{Config: w.Config, Server: w.Server, DB: w.DB, Blobs: w.Blobs, Log: w.Log, Now: func() time.Time { return w.now.Add(-LinkLasts) }})
	defer same.Close()
	if f, err := same.OpenLink(t.Context(), uri, query); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
}
