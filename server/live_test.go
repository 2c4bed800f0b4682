package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

const livePath = "/_matrix/client/unstable/im.parley.voice/live/"

// recorded is a recording cut in pieces as a recorder gives them.
type recorded struct {
	contentType string
	whole       []byte
	pieces      [][]byte
}

// readRecorded cuts a file into so many pieces, which do not end where its units do.
func readRecorded(t testing.TB, name string, pieces int) recorded {
	t.Helper()
	b, err := os.ReadFile("audio/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	r := recorded{contentType: "audio/" + name[strings.LastIndexByte(name, '.')+1:], whole: b}
	if r.contentType == "audio/webm" {
		r.contentType += ";codecs=opus"
	}
	for size := len(b)/pieces + 1; len(b) > 0; {
		n := min(size, len(b))
		r.pieces = append(r.pieces, b[:n])
		b = b[n:]
	}
	return r
}

// reserve gets a media ID.
func (p *person) reserve() (mxc string) {
	p.t.Helper()
	var created struct {
		ContentURI string `json:"content_uri"`
	}
	p.must("POST", "/_matrix/media/v1/create", map[string]any{}, &created)
	return created.ContentURI
}

func liveContent(mxc, contentType string) map[string]any {
	return map[string]any{
		"msgtype": "m.audio", "body": "Voice message", "url": mxc, "info": map[string]any{"mimetype": contentType},
		"org.matrix.msc1767.audio": map[string]any{}, "org.matrix.msc3245.voice": map[string]any{}, "m.mentions": map[string]any{},
		"im.parley.voice.live": map[string]any{},
	}
}

// liveAnswer is what the live endpoint answers, errors included.
type liveAnswer struct {
	status   int
	Errcode  string
	Error    string
	Size     int64
	Duration int64
}

// live makes a request of the live endpoint.
func (p *person) live(method, mxc, query, contentType string, body io.Reader) (a liveAnswer, err error) {
	r, err := http.NewRequestWithContext(p.t.Context(), method, p.url+livePath+strings.TrimPrefix(mxc, "mxc://")+query, body)
	if err != nil {
		return a, err
	}
	r.Header.Set("Authorization", "Bearer "+p.Token)
	r.Header.Set("Content-Type", contentType)
	answer, err := p.http.Do(r)
	if err != nil {
		return a, err
	}
	defer answer.Body.Close()
	a.status = answer.StatusCode
	return a, json.NewDecoder(answer.Body).Decode(&a)
}

// speak appends and must be answered 200.
func (p *person) speak(mxc, contentType string, offset int, content []byte, end bool) liveAnswer {
	p.t.Helper()
	query := fmt.Sprint("?offset=", offset)
	if end {
		query += "&end=true"
	}
	a, err := p.live("PUT", mxc, query, contentType, bytes.NewReader(content))
	if err != nil || a.status != 200 || a.Size != int64(offset+len(content)) {
		p.t.Fatalf("append at %d: %+v, %v", offset, a, err)
	}
	return a
}

// listening is a download under way.
type listening struct {
	t      testing.TB
	answer *http.Response
	got    []byte
}

// listen begins a download; it returns with the headers.
func (p *person) listen(mxc string) *listening {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), "GET", p.url+"/_matrix/client/v1/media/download/"+strings.TrimPrefix(mxc, "mxc://"), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+p.Token)
	answer, err := p.http.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { answer.Body.Close() })
	return &listening{p.t, answer, nil}
}

// hears reads until there are so many bytes.
func (l *listening) hears(n int) {
	l.t.Helper()
	buf := make([]byte, 4096)
	for len(l.got) < n {
		m, err := l.answer.Body.Read(buf)
		l.got = append(l.got, buf[:m]...)
		if err != nil {
			l.t.Fatalf("after %d bytes of %d: %v", len(l.got), n, err)
		}
	}
}

// all reads to the end.
func (l *listening) all() ([]byte, error) {
	rest, err := io.ReadAll(l.answer.Body)
	l.got = append(l.got, rest...)
	return l.got, err
}

// isReplaced waits for the edit of a live message, and looks at it.
func (p *person) isReplaced(room, event, mxc string) (newContent map[string]any) {
	p.t.Helper()
	p.until("the edit of "+event, func(answer map[string]any) bool {
		for _, e := range list(dig(answer, "rooms", "join", room, "timeline", "events")) {
			if dig(e, "content", "m.relates_to", "event_id") == event && dig(e, "content", "m.relates_to", "rel_type") == "m.replace" {
				newContent = object(dig(e, "content", "m.new_content"))
				return true
			}
		}
		return false
	})
	if newContent["url"] != mxc || newContent["im.parley.voice.live"] != nil || newContent["org.matrix.msc3245.voice"] == nil {
		p.t.Errorf("the edit says %v", newContent)
	}
	return newContent
}

// isRedacted waits until the event has been redacted.
func (p *person) isRedacted(room, event string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	for {
		var read map[string]any
		p.must("GET", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/event/"+url.PathEscape(event), nil, &read)
		if dig(read, "unsigned", "redacted_because") != nil {
			return
		}
		var answer map[string]any
		if err := p.call(ctx, p.Token, "GET", "/_matrix/client/v3/sync?timeout=1000&since="+url.QueryEscape(p.since), nil, &answer); err != nil {
			p.t.Fatalf("%s waits for the redaction: %v", p.ID, err)
		}
		p.since, _ = answer["next_batch"].(string)
	}
}

// What alice says is heard by bob on the other server and by carol on her own while she speaks, by those who come late too, and is the same for all.
func TestVoiceMessageIsHeardWhileItIsSpoken(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		for _, s := range w.servers {
			startInProcess(t, s, nil)
		}
		alice, bob, carol := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob"), newPerson(t, w.servers[0], "carol")
		room, _ := meet(t, w, 0, alice, bob, carol)
		for _, name := range []string{"speech.ogg", "live-ffmpeg.webm", "fragments-ffmpeg.mp4"} {
			r := readRecorded(t, name, 12)
			mxc := alice.reserve()
			event := alice.send(room, name, liveContent(mxc, r.contentType))
			var seen map[string]any
			bob.until("the live message", timelineHas(room, "url", mxc, &seen))
			if seen["event_id"] != event || dig(seen, "content", "im.parley.voice.live") == nil {
				t.Errorf("bob sees %v", seen)
			}
			said := 0
			say := func(pieces int) {
				for range pieces {
					piece := r.pieces[0]
					r.pieces = r.pieces[1:]
					alice.speak(mxc, r.contentType, said, piece, false)
					said += len(piece)
				}
			}
			say(4)
			listeners := []*listening{bob.listen(mxc), carol.listen(mxc)}
			for _, l := range listeners {
				if l.answer.StatusCode != 200 || l.answer.ContentLength != -1 || l.answer.Header.Get("Content-Type") != r.contentType {
					t.Fatalf("%d %v", l.answer.StatusCode, l.answer.Header)
				}
				l.hears(1)
			}
			say(4)
			heard := len(listeners[0].got) + 1
			for _, l := range listeners { // who is here already hears more, and who comes now hears it from the beginning
				l.hears(heard)
			}
			late := []*listening{bob.listen(mxc), carol.listen(mxc)}
			for _, l := range late {
				l.hears(heard)
			}
			listeners = append(listeners, late...)
			say(len(r.pieces))
			end := alice.speak(mxc, r.contentType, said, nil, true)
			if end.Duration < 3900 || end.Duration > 4100 {
				t.Errorf("it took %d ms", end.Duration)
			}
			if again := alice.speak(mxc, r.contentType, said, nil, true); again != end {
				t.Errorf("ended again: %+v, before it was %+v", again, end)
			}
			for i, l := range listeners {
				if got, err := l.all(); err != nil || !bytes.Equal(got, r.whole) {
					t.Errorf("%s, listener %d: %d bytes of %d, %v", name, i, len(got), len(r.whole), err)
				}
			}
			for _, p := range []*person{alice, bob, carol} {
				said := p.isReplaced(room, event, mxc)
				if dig(said, "info", "duration") != float64(end.Duration) || dig(said, "info", "size") != float64(len(r.whole)) || len(list(dig(said, "org.matrix.msc1767.audio", "waveform"))) != 100 {
					t.Errorf("%s: the edit says %v", p.ID, said)
				}
				status, got, header := p.download(mxc, http.Header{"Range": {"bytes=100-199"}})
				if status != http.StatusPartialContent || !bytes.Equal(got, r.whole[100:200]) {
					t.Errorf("%s, a part after the end: %d, %d bytes, %v", p.ID, status, len(got), header)
				}
			}
		}
		// Three messages, not six.
		var inbox map[string]any
		bob.must("GET", "/_matrix/client/unstable/im.parley.voice/inbox", nil, &inbox)
		if inbox["total"] != 3.0 {
			t.Errorf("bob's inbox has %v", inbox["total"])
		}
	})
}

func TestCancelledLiveMessageIsGone(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		for _, s := range w.servers {
			startInProcess(t, s, nil)
		}
		alice, bob, carol := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob"), newPerson(t, w.servers[0], "carol")
		room, _ := meet(t, w, 0, alice, bob, carol)
		r := readRecorded(t, "live-ffmpeg.webm", 6)
		for name, cancel := range map[string]func(mxc, event string){
			"by the client": func(mxc, event string) {
				if a, err := bob.live("DELETE", mxc, "", "", nil); err != nil || a.Errcode != "M_NOT_FOUND" {
					t.Errorf("bob cancels on his server: %+v, %v", a, err)
				}
				if a, err := carol.live("DELETE", mxc, "", "", nil); err != nil || a.Errcode != "M_FORBIDDEN" {
					t.Errorf("carol cancels: %+v, %v", a, err)
				}
				if a, err := alice.live("DELETE", mxc, "", "", nil); err != nil || a.status != 200 {
					t.Errorf("alice cancels: %+v, %v", a, err)
				}
			},
			"by a redaction": func(mxc, event string) {
				alice.must("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/redact/"+url.PathEscape(event)+"/1", map[string]any{}, nil)
			},
		} {
			mxc := alice.reserve()
			event := alice.send(room, name, liveContent(mxc, r.contentType))
			alice.speak(mxc, r.contentType, 0, r.pieces[0], false)
			alice.speak(mxc, r.contentType, len(r.pieces[0]), r.pieces[1], false)
			bob.until("the live message", timelineHas(room, "url", mxc, nil))
			listeners := []*listening{bob.listen(mxc), carol.listen(mxc)}
			for _, l := range listeners {
				l.hears(1)
			}
			cancel(mxc, event)
			for i, l := range listeners {
				if got, err := l.all(); err == nil {
					t.Errorf("%s: listener %d got %d bytes and an end", name, i, len(got))
				}
			}
			for _, p := range []*person{alice, bob} {
				p.isRedacted(room, event)
				status, body, _ := p.download(mxc, nil)
				if status != 404 || !bytes.Contains(body, []byte("M_NOT_FOUND")) {
					t.Errorf("%s: %s downloads: %d %s", name, p.ID, status, body)
				}
			}
			if a, err := alice.live("PUT", mxc, "?offset=0", r.contentType, bytes.NewReader(r.pieces[0])); err != nil || a.Errcode != "M_NOT_FOUND" {
				t.Errorf("%s: alice goes on: %+v, %v", name, a, err)
			}
		}
	})
}
