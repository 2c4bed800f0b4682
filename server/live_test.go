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
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"parley.im/parley/server/audio"
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

// isRedacted waits until the event has been redacted, and gives the content of the redaction.
func (p *person) isRedacted(room, event string) (why any) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	for {
		var read map[string]any
		p.must("GET", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/event/"+url.PathEscape(event), nil, &read)
		if why := dig(read, "unsigned", "redacted_because", "content"); why != nil {
			return why
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
				why, _ := p.isRedacted(room, event).(map[string]any)
				if _, said := why["im.parley.voice.live"]; said != (name == "by the client") {
					t.Errorf("%s: for %s the redaction says %v", name, p.ID, why)
				}
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

// A talker whose client dies is heard up to the last whole unit, which then is the file; one of whom nothing could be heard is taken back.
func TestLiveMessageOfAClientThatDied(t *testing.T) {
	t.Setenv("PARLEY_VOICE_LIVE_IDLE", "2s")
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		for _, s := range w.servers {
			startInProcess(t, s, nil)
		}
		alice, bob, carol := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob"), newPerson(t, w.servers[0], "carol")
		room, _ := meet(t, w, 0, alice, bob, carol)
		for _, name := range []string{"speech.ogg", "live-ffmpeg.webm", "fragments-ffmpeg.mp4"} {
			r := readRecorded(t, name, 1)
			mxc := alice.reserve()
			event := alice.send(room, name, liveContent(mxc, r.contentType))
			cut := len(r.whole) - 700
			alice.speak(mxc, r.contentType, 0, r.whole[:cut], false)
			listeners := []*listening{bob.listen(mxc), carol.listen(mxc)}
			for i, l := range listeners {
				got, err := l.all()
				if err != nil || len(got) == 0 || len(got) > cut || !bytes.Equal(got, r.whole[:len(got)]) {
					t.Errorf("%s, listener %d: %d bytes of %d, %v", name, i, len(got), cut, err)
				}
			}
			said := bob.isReplaced(room, event, mxc)
			_, file, _ := alice.download(mxc, nil)
			info, err := audio.Inspect(bytes.NewReader(file), int64(len(file)), 0)
			if err != nil || dig(said, "info", "duration") != float64(info.Duration().Round(time.Millisecond).Milliseconds()) {
				t.Errorf("%s: the file of %d bytes: %+v, %v; the edit says %v", name, len(file), info, err, said)
			}
			for i, l := range listeners {
				if !bytes.Equal(l.got, file) {
					t.Errorf("%s: listener %d heard something else than the file", name, i)
				}
			}
			// The client comes back too late.
			a, err := alice.live("PUT", mxc, fmt.Sprint("?offset=", cut), r.contentType, bytes.NewReader(r.whole[cut:]))
			if err != nil || a.status != 409 || a.Errcode != "M_CANNOT_OVERWRITE_MEDIA" || a.Size != int64(len(file)) {
				t.Errorf("%s: appended after the end: %+v, %v", name, a, err)
			}
		}
		r := readRecorded(t, "speech.ogg", 1)
		mxc := alice.reserve()
		event := alice.send(room, "nothing", liveContent(mxc, r.contentType))
		alice.speak(mxc, r.contentType, 0, r.whole[:100], false)
		bob.until("the live message", timelineHas(room, "url", mxc, nil))
		bob.isRedacted(room, event)
	})
}

// Whatever was answered is there after a kill, and the message is finished once, by whichever process comes next.
func TestLiveMessageSurvivesKilledServers(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		for _, s := range w.servers {
			startProcess(t, s)
		}
		restart := func(servers ...*devServer) {
			for _, s := range servers {
				kill(t, s)
				startProcess(t, s)
			}
		}
		alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
		room, _ := meet(t, w, 0, alice, bob)
		r := readRecorded(t, "live-ffmpeg.webm", 4)
		mxc := alice.reserve()
		event := alice.send(room, "1", liveContent(mxc, r.contentType))
		said := 0
		for _, piece := range r.pieces[:2] {
			alice.speak(mxc, r.contentType, said, piece, false)
			said += len(piece)
		}
		bob.until("the live message", timelineHas(room, "url", mxc, nil))
		early := bob.listen(mxc)
		early.hears(1)
		restart(w.servers[0])
		if got, err := early.all(); err == nil {
			t.Errorf("a listener got %d bytes and an end when the server was killed", len(got))
		}
		// The client does not know how much was taken.
		a, err := alice.live("PUT", mxc, fmt.Sprint("?offset=", len(r.whole)), r.contentType, strings.NewReader("x"))
		if err != nil || a.status != 409 || a.Size != int64(said) {
			t.Fatalf("appended too far: %+v, %v; want the size %d", a, err, said)
		}
		listener := bob.listen(mxc)
		listener.hears(1)
		restart(w.servers[1]) // the one that passes it on
		if got, err := listener.all(); err == nil {
			t.Errorf("a listener got %d bytes and an end when his server was killed", len(got))
		}
		listener = bob.listen(mxc)
		listener.hears(1)
		alice.speak(mxc, r.contentType, said, r.pieces[2], false)
		said += len(r.pieces[2])
		end := alice.speak(mxc, r.contentType, said, r.pieces[3], true)
		kill(t, w.servers[0])
		startProcess(t, w.servers[0])
		if again := alice.speak(mxc, r.contentType, said, r.pieces[3], true); again != end {
			t.Errorf("ended again: %+v, before it was %+v", again, end)
		}
		bob.isReplaced(room, event, mxc)
		for _, p := range []*person{alice, bob} {
			if status, got, _ := p.download(mxc, nil); status != 200 || !bytes.Equal(got, r.whole) {
				t.Errorf("%s downloads: %d, %d bytes of %d", p.ID, status, len(got), len(r.whole))
			}
			var page struct {
				Chunk []struct{ Type string }
			}
			messages := 0
			p.must("GET", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/messages?dir=b&limit=100", nil, &page)
			for _, e := range page.Chunk {
				if e.Type == "m.room.message" {
					messages++
				}
			}
			if messages != 3 { // "that was it", the message and its one edit
				t.Errorf("%s finds %d messages", p.ID, messages)
			}
		}
		// A cancellation that was answered is seen to as well.
		mxc = alice.reserve()
		event = alice.send(room, "2", liveContent(mxc, r.contentType))
		alice.speak(mxc, r.contentType, 0, r.pieces[0], false)
		if a, err := alice.live("DELETE", mxc, "", "", nil); err != nil || a.status != 200 {
			t.Fatalf("alice cancels: %+v, %v", a, err)
		}
		restart(w.servers[0])
		bob.isRedacted(room, event)
		if status, _, _ := alice.download(mxc, nil); status != 404 {
			t.Errorf("what was cancelled is answered with %d", status)
		}
	})
}

func TestLiveAppendsThatAreNotInOrder(t *testing.T) {
	t.Setenv("PARLEY_MEDIA_MAX_UPLOAD_BYTES", "20000")
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorldOf(t, 1, postgres)
		h := startInProcess(t, w.servers[0], nil)
		alice, mallory := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[0], "mallory")
		room, _ := meet(t, w, 0, alice)
		r := readRecorded(t, "speech.ogg", 5)
		refused := func(p *person, mxc string, offset int, content []byte, status int, code string) liveAnswer {
			t.Helper()
			a, err := p.live("PUT", mxc, fmt.Sprint("?offset=", offset), r.contentType, bytes.NewReader(content))
			if err != nil || a.status != status || a.Errcode != code || a.Error == "" {
				t.Errorf("%d bytes at %d: %+v, %v; want %d %s", len(content), offset, a, err, status, code)
			}
			return a
		}
		mxc := alice.reserve()
		first, second := r.pieces[0], r.pieces[1]
		refused(alice, "mxc://"+w.servers[0].ServerName+"/nothing", 0, first, 404, "M_NOT_FOUND")
		refused(alice, "mxc://elsewhere.example/nothing", 0, first, 404, "M_NOT_FOUND")
		refused(mallory, mxc, 0, first, 403, "M_FORBIDDEN")
		if a := refused(alice, mxc, 10, first, 409, "M_UNKNOWN"); a.Size != 0 {
			t.Errorf("a gap at the beginning: %+v", a)
		}
		refused(alice, mxc, 0, []byte("this is no recording at all"), 400, "M_INVALID_PARAM")
		alice.speak(mxc, r.contentType, 0, first, false)
		alice.speak(mxc, r.contentType, 0, first, false) // once more, as a client does that did not get the answer
		refused(mallory, mxc, len(first), second, 403, "M_FORBIDDEN")
		if a := refused(alice, mxc, len(first)+1, second, 409, "M_UNKNOWN"); a.Size != int64(len(first)) {
			t.Errorf("a gap: %+v", a)
		}
		other := bytes.Clone(first)
		other[len(other)-1] ^= 1
		refused(alice, mxc, 0, other, 400, "M_INVALID_PARAM")
		alice.speak(mxc, r.contentType, 50, r.whole[50:len(first)+len(second)], false) // half of it is known
		if err := alice.call(t.Context(), alice.Token, "PUT", "/_matrix/media/v3/upload/"+strings.TrimPrefix(mxc, "mxc://"), r.whole, nil); err == nil || !strings.Contains(err.Error(), "M_CANNOT_OVERWRITE_MEDIA") {
			t.Errorf("an upload to it: %v", err)
		}
		// One body that comes slowly is as good as many.
		at := len(first) + len(second)
		reader, writer := io.Pipe()
		done := make(chan liveAnswer)
		go func() {
			a, err := alice.live("PUT", mxc, fmt.Sprint("?end=true&offset=", at), r.contentType, reader)
			if err != nil {
				t.Error(err)
			}
			done <- a
		}()
		listener := mallory.listen(mxc)
		for _, piece := range r.pieces[2:] {
			if _, err := writer.Write(piece); err != nil {
				t.Fatal(err)
			}
			at += len(piece)
		}
		listener.hears(at - 2000) // though nothing has been answered yet; all but the page that has not ended
		writer.Close()
		if a := <-done; a.status != 200 || a.Size != int64(len(r.whole)) || a.Duration != 3960 {
			t.Errorf("the slow body: %+v", a)
		}
		if got, err := listener.all(); err != nil || !bytes.Equal(got, r.whole) {
			t.Errorf("heard %d bytes, %v", len(got), err)
		}
		// It was recorded before its message, which can only be an ordinary one now.
		if err := alice.call(t.Context(), alice.Token, "PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/send/m.room.message/late", liveContent(mxc, r.contentType), nil); err == nil || !strings.Contains(err.Error(), "M_CANNOT_OVERWRITE_MEDIA") {
			t.Errorf("a live message of a file: %v", err)
		}

		// Above the limit in bytes it is ended, with what was whole.
		long := bytes.Clone(voiceMessage(t, 10)) // 31 kB
		mxc = alice.reserve()
		event := alice.send(room, "long", liveContent(mxc, r.contentType))
		alice.speak(mxc, r.contentType, 0, long[:19000], false)
		a := refused(alice, mxc, 19000, long[19000:], 413, "M_TOO_LARGE")
		if a.Size == 0 || a.Size > 19000 {
			t.Errorf("too long: %+v", a)
		}
		alice.isReplaced(room, event, mxc)
		if status, got, _ := alice.download(mxc, nil); status != 200 || !bytes.Equal(got, long[:a.Size]) {
			t.Errorf("what was too long: %d, %d bytes", status, len(got))
		}
		if _, readers := h.media.LiveCounts(); readers != 0 {
			t.Errorf("%d still listen", readers)
		}
	})
}

func TestLiveMessagesThatAreRefused(t *testing.T) {
	w := testWorldOf(t, 1, false)
	startInProcess(t, w.servers[0], nil)
	alice, mallory := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[0], "mallory")
	room, _ := meet(t, w, 0, alice, mallory)
	secret, _ := meet(t, w, 0, alice)
	alice.must("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(secret)+"/state/m.room.encryption/", map[string]any{"algorithm": "m.megolm.v1.aes-sha2"}, nil)
	short, _ := meet(t, w, 0, alice)
	alice.must("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(short)+"/state/im.parley.voice.limit/", map[string]any{"max_duration": 2000}, nil)
	var can map[string]any
	alice.must("GET", "/_matrix/client/v3/capabilities", nil, &can)
	if dig(can, "capabilities", "im.parley.voice.live", "enabled") != true {
		t.Errorf("the capabilities are %v", can)
	}
	txn := 0
	send := func(p *person, room string, content map[string]any) error {
		txn++
		return p.call(t.Context(), p.Token, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/send/m.room.message/r%d", url.PathEscape(room), txn), content, nil)
	}
	refused := func(what string, err error, code string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), code) {
			t.Errorf("%s: %v, want %s", what, err, code)
		}
	}
	r := readRecorded(t, "speech.ogg", 2)
	var uploaded struct {
		ContentURI string `json:"content_uri"`
	}
	alice.must("POST", "/_matrix/media/v3/upload", r.whole, &uploaded)
	mxc := alice.reserve()
	refused("in an encrypted room", send(alice, secret, liveContent(mxc, r.contentType)), "M_FORBIDDEN")
	refused("with another's media ID", send(mallory, room, liveContent(mxc, r.contentType)), "M_FORBIDDEN")
	refused("with a file", send(alice, room, liveContent(uploaded.ContentURI, r.contentType)), "M_CANNOT_OVERWRITE_MEDIA")
	refused("with another server's", send(alice, room, liveContent("mxc://elsewhere.example/x", r.contentType)), "M_NOT_FOUND")
	text := liveContent(mxc, r.contentType)
	delete(text, "org.matrix.msc3245.voice")
	refused("that is no voice message", send(alice, room, text), "M_INVALID_PARAM")
	edit := liveContent(mxc, r.contentType)
	edit["m.relates_to"] = map[string]any{"rel_type": "m.replace", "event_id": "$x"}
	refused("that is an edit", send(alice, room, edit), "M_INVALID_PARAM")
	event := alice.send(room, "once", liveContent(mxc, r.contentType))
	refused("with a recording of another message", send(alice, room, liveContent(mxc, r.contentType)), "M_INVALID_PARAM")
	second := alice.reserve()
	alice.send(room, "second", liveContent(second, r.contentType))
	refused("a third at the same time", send(alice, room, liveContent(alice.reserve(), r.contentType)), "M_LIMIT_EXCEEDED")
	if a, err := alice.live("DELETE", second, "", "", nil); err != nil || a.status != 200 {
		t.Errorf("cancelled before anything was said: %+v, %v", a, err)
	}
	alice.speak(mxc, r.contentType, 0, r.whole, true)
	alice.isReplaced(room, event, mxc)
	if again := alice.send(room, "once", liveContent(mxc, r.contentType)); again != event {
		t.Errorf("the same transaction after the end gave %s, before it was %s", again, event)
	}

	// A room allows two seconds.
	mxc = alice.reserve()
	event = alice.send(short, "short", liveContent(mxc, r.contentType))
	a, err := alice.live("PUT", mxc, "?offset=0", r.contentType, bytes.NewReader(r.whole))
	if err != nil || a.status != 413 || a.Errcode != "M_TOO_LARGE" || a.Size == 0 {
		t.Errorf("more than the room allows: %+v, %v", a, err)
	}
	if said := alice.isReplaced(short, event, mxc); dig(said, "info", "duration").(float64) > 2000 || dig(said, "info", "size") != float64(a.Size) {
		t.Errorf("the edit says %v", said)
	}
	// What ends in the middle of a unit is refused like any upload.
	mxc = alice.reserve()
	event = alice.send(room, "broken", liveContent(mxc, r.contentType))
	if a, err := alice.live("PUT", mxc, "?offset=0&end=true", r.contentType, bytes.NewReader(r.whole[:9000])); err != nil || a.Errcode != "M_INVALID_PARAM" {
		t.Errorf("ended within a page: %+v, %v", a, err)
	}
	alice.isRedacted(room, event)

	// Who takes a message back that has been edited takes the edit back as well: it says the same.
	mxc = alice.reserve()
	event = alice.send(room, "taken back", liveContent(mxc, r.contentType))
	alice.speak(mxc, r.contentType, 0, r.whole, true)
	alice.isReplaced(room, event, mxc)
	var page struct {
		Chunk []struct {
			EventID string `json:"event_id"`
			Content map[string]any
		}
	}
	alice.must("GET", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/messages?dir=b&limit=10", nil, &page)
	alice.must("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/redact/"+url.PathEscape(event)+"/2", map[string]any{}, nil)
	for _, e := range page.Chunk {
		if dig(e.Content, "m.relates_to", "event_id") == event {
			alice.isRedacted(room, e.EventID)
			return
		}
	}
	t.Error("the edit was not found")
}

// What is spoken is written down when it has ended, once by each server that writes down, under the message that was heard live.
func TestLiveMessageIsWrittenDownAtItsEnd(t *testing.T) {
	var ended atomic.Bool
	var calls atomic.Int32
	t.Setenv("PARLEY_VOICE_TRANSCRIPTS_ENDPOINT", speechService(t, func(ms int) string {
		calls.Add(1)
		if !ended.Load() {
			t.Error("it was to be written down before it had ended")
		}
		return fmt.Sprint("Es dauert ", ms)
	}))
	w := testWorld(t, false)
	for _, s := range w.servers {
		startInProcess(t, s, nil)
	}
	alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
	room, _ := meet(t, w, 0, alice, bob)
	r := readRecorded(t, "speech.ogg", 3)
	mxc := alice.reserve()
	event := alice.send(room, "1", liveContent(mxc, r.contentType))
	alice.speak(mxc, r.contentType, 0, r.pieces[0], false)
	bob.until("the live message", timelineHas(room, "url", mxc, nil))
	listener := bob.listen(mxc)
	listener.hears(1)
	path := "/_matrix/client/unstable/im.parley.voice/rooms/" + url.PathEscape(room) + "/transcript/" + url.PathEscape(event)
	for _, p := range []*person{alice, bob} {
		var transcript map[string]any
		if p.must("GET", path+"?timeout=200", nil, &transcript); transcript["pending"] != true {
			t.Errorf("%s: while it is spoken the transcript is %v", p.ID, transcript)
		}
	}
	ended.Store(true)
	alice.speak(mxc, r.contentType, len(r.pieces[0]), r.whole[len(r.pieces[0]):], true)
	for _, p := range []*person{alice, bob} {
		var transcript map[string]any
		if p.must("GET", path+"?timeout=30000", nil, &transcript); transcript["text"] != "Es dauert 3960" {
			t.Errorf("%s: the transcript is %v", p.ID, transcript)
		}
	}
	bob.isReplaced(room, event, mxc)
	if n := calls.Load(); n != 2 {
		t.Errorf("the service was asked %d times", n)
	}
}

// Prints how long it takes from the press of the button to the first sound at the other server, from each piece to there, and from the release to the end.
func TestLiveDelays(t *testing.T) {
	eachDatabase(t, func(t *testing.T, postgres bool) {
		w := testWorld(t, postgres)
		for _, s := range w.servers {
			startInProcess(t, s, nil)
		}
		alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
		room, _ := meet(t, w, 0, alice, bob)
		r := readRecorded(t, "live-ffmpeg.webm", 40)
		mxc := alice.reserve()
		pressed := time.Now()
		alice.send(room, "1", liveContent(mxc, r.contentType))
		alice.speak(mxc, r.contentType, 0, r.pieces[0], false)
		bob.until("the live message", timelineHas(room, "url", mxc, nil))
		listener := bob.listen(mxc)
		listener.hears(1)
		first := time.Since(pressed)
		var scanner audio.Scanner
		whole, err := scanner.Scan(r.pieces[0], 0)
		if err != nil {
			t.Fatal(err)
		}
		said := len(r.pieces[0])
		var taken, heard []time.Duration
		for i, piece := range r.pieces[1:] {
			began := time.Now()
			last := i == len(r.pieces)-2
			alice.speak(mxc, r.contentType, said, piece, last)
			taken = append(taken, time.Since(began))
			said += len(piece)
			n, err := scanner.Scan(r.whole[whole:said], 0)
			if err != nil {
				t.Fatal(err)
			}
			if whole += n; n > 0 && !last {
				listener.hears(whole)
				heard = append(heard, time.Since(began))
			}
		}
		released := time.Now()
		if got, err := listener.all(); err != nil || !bytes.Equal(got, r.whole) {
			t.Errorf("heard %d bytes of %d, %v", len(got), len(r.whole), err)
		}
		ending := taken[len(taken)-1] + time.Since(released)
		slices.Sort(taken)
		slices.Sort(heard)
		t.Logf("from the press to the first sound on the other server %v; appending a piece p50 %v, p95 %v; from a piece to the other server p50 %v, p95 %v; from the release to the end there %v",
			first, taken[len(taken)/2], taken[len(taken)*95/100], heard[len(heard)/2], heard[len(heard)*95/100], ending)
	})
}

// Who takes nothing holds nobody up, and gets all of it in the end.
func TestSlowListenerHoldsNobodyUp(t *testing.T) {
	w := testWorld(t, false)
	for _, s := range w.servers {
		startInProcess(t, s, nil)
	}
	alice, bob := newPerson(t, w.servers[0], "alice"), newPerson(t, w.servers[1], "bob")
	room, _ := meet(t, w, 0, alice, bob)
	whole := voiceMessage(t, 1500) // some megabytes: more than fits into the buffers between them
	mxc := alice.reserve()
	event := alice.send(room, "1", liveContent(mxc, "audio/ogg"))
	const piece = 200_000
	alice.speak(mxc, "audio/ogg", 0, whole[:piece], false)
	slow := []*listening{alice.listen(mxc), bob.listen(mxc)}
	quick := bob.listen(mxc)
	for at := piece; at < len(whole); at += piece {
		end := min(at+piece, len(whole))
		alice.speak(mxc, "audio/ogg", at, whole[at:end], end == len(whole))
		quick.hears(at - 5000)
	}
	for i, l := range append([]*listening{quick}, slow...) {
		if got, err := l.all(); err != nil || !bytes.Equal(got, whole) {
			t.Errorf("listener %d: %d bytes of %d, %v", i, len(got), len(whole), err)
		}
	}
	bob.isReplaced(room, event, mxc)
}
