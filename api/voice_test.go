package api

import (
	"bytes"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestVoiceMessageSaysOfItsFileWhatIsTrue(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	file, err := os.ReadFile("../server/audio/testdata/speech.ogg")
	if err != nil {
		t.Fatal(err)
	}
	up := ask(w.handler, post, "/_matrix/media/v3/upload?filename=a.ogg", string(file), "Content-Type", "audio/ogg", "Authorization", "Bearer "+alice.token)
	mxc := strings.TrimRight(strings.TrimPrefix(up.Body.String(), `{"content_uri":"`), "\"}\n")
	id := alice.must(post, "/createRoom", map[string]any{})["room_id"].(string)
	event := alice.must(put, "/rooms/"+id+"/send/m.room.message/1", map[string]any{
		"msgtype": "m.audio", "body": "Voice message.ogg", "url": mxc, "org.matrix.msc3245.voice": map[string]any{},
		"info": map[string]any{"duration": 59_000, "size": 1},
	})["event_id"].(string)
	content := alice.must(get, "/rooms/"+id+"/event/"+event, nil)["content"].(map[string]any)
	info, sound := content["info"].(map[string]any), content["org.matrix.msc1767.audio"].(map[string]any)
	if info["duration"] != 3960.0 || info["size"] != float64(len(file)) || info["mimetype"] != "audio/ogg" || sound["duration"] != 3960.0 {
		t.Errorf("got %v, %v", info, sound["duration"])
	}
	if waveform, _ := sound["waveform"].([]any); len(waveform) != 100 {
		t.Errorf("waveform %v", sound["waveform"])
	}
	forged := string(file) + string(file)
	if up := ask(w.handler, post, "/_matrix/media/v3/upload", forged, "Content-Type", "audio/ogg", "Authorization", "Bearer "+alice.token); up.Code != 400 || errcode(t, up) != "M_INVALID_PARAM" {
		t.Errorf("two recordings in one file: got %d %s", up.Code, up.Body)
	}
}

func TestRecordingIsHadInAnotherContainerAndByLink(t *testing.T) {
	w := newWorld(t, quiet())
	alice := w.person("alice")
	file, err := os.ReadFile("../server/audio/testdata/speech.ogg")
	if err != nil {
		t.Fatal(err)
	}
	up := ask(w.handler, post, "/_matrix/media/v3/upload?filename=a.ogg", string(file), "Content-Type", "audio/ogg", "Authorization", "Bearer "+alice.token)
	id := strings.TrimRight(strings.TrimPrefix(up.Body.String(), `{"content_uri":"mxc://test/`), "\"}\n")
	voice := "/_matrix/client/unstable/im.parley.voice"
	whole := alice.ask(get, voice+"/media/test/"+id+"?container=webm", nil)
	if whole.Code != 200 || whole.Header().Get("Content-Type") != "audio/webm" || !strings.HasPrefix(whole.Body.String(), "\x1a\x45\xdf\xa3") {
		t.Errorf("got %d %v", whole.Code, whole.Header())
	}
	alice.refused(get, voice+"/media/test/"+id+"?container=wav", nil, 400, "M_INVALID_PARAM")
	if got := ask(w.handler, get, voice+"/media/test/"+id, ""); got.Code != 401 {
		t.Errorf("without a token: got %d", got.Code)
	}

	link := alice.must(post, voice+"/link/test/"+id+"?container=webm", nil)
	part := ask(w.handler, get, link["path"].(string), "", "Range", "bytes=100-199")
	if part.Code != 206 || part.Body.String() != whole.Body.String()[100:200] {
		t.Errorf("got %d %q", part.Code, part.Body)
	}
	if got := ask(w.handler, get, strings.Replace(link["path"].(string), "webm", "mp4", 1), ""); got.Code != 403 || errcode(t, got) != "M_FORBIDDEN" {
		t.Errorf("a changed link: got %d %s", got.Code, got.Body)
	}
}

func TestPlayedStateFollowsTheUserAndEmptiesTheInbox(t *testing.T) {
	w := newWorld(t, quiet())
	alice, bob := w.person("alice"), w.person("bob")
	id := alice.must(post, "/createRoom", map[string]any{"preset": "public_chat"})["room_id"].(string)
	say := func(p *person, txn string) string {
		return p.must(put, "/rooms/"+id+"/send/m.room.message/"+txn, map[string]any{
			"msgtype": "m.audio", "body": "v", "url": "mxc://elsewhere/x", "org.matrix.msc3245.voice": map[string]any{},
		})["event_id"].(string)
	}
	say(alice, "before") // bob was not there: not for his inbox
	bob.must(post, "/join/"+id, map[string]any{})
	first, second := say(alice, "1"), say(alice, "2")
	say(bob, "own")
	text := alice.must(put, "/rooms/"+id+"/send/m.room.message/3", map[string]any{"msgtype": "m.text", "body": `"org.matrix.msc3245.voice`})["event_id"].(string)
	voice := "/_matrix/client/unstable/im.parley.voice"

	inbox := func(query string) (total float64, events []string) {
		answer := bob.must(get, voice+"/inbox"+query, nil)
		for _, e := range answer["events"].([]any) {
			events = append(events, e.(map[string]any)["event_id"].(string))
		}
		return answer["total"].(float64), events
	}
	if total, events := inbox(""); total != 2 || strings.Join(events, " ") != first+" "+second {
		t.Errorf("inbox: %v %v, want %s %s", total, events, first, second)
	}
	end := bob.must(get, voice+"/inbox?limit=1", nil)["end"].(string)
	if _, events := inbox("?limit=1&from=" + end); strings.Join(events, " ") != second {
		t.Errorf("second page: %v, want %s", events, second)
	}

	played := voice + "/rooms/" + id + "/played"
	bob.must(put, played+"/"+first, map[string]any{"position": 1500})
	bob.must(put, played+"/"+second, map[string]any{"played": true})
	want := map[string]any{
		first:  map[string]any{"played": false, "position": 1500.0},
		second: map[string]any{"played": true, "position": 0.0},
	}
	if got := bob.must(get, played, nil)["events"]; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := bob.must(get, "/user/"+string(bob.id)+"/rooms/"+id+"/account_data/im.parley.voice.played", nil)["events"]; !reflect.DeepEqual(got, want) {
		t.Errorf("account data: %v, want %v", got, want)
	}
	if total, events := inbox(""); total != 1 || strings.Join(events, " ") != first {
		t.Errorf("inbox after one was played: %v %v", total, events)
	}
	if got := alice.must(get, played, nil)["events"]; len(got.(map[string]any)) != 0 {
		t.Errorf("alice sees what bob has played: %v", got)
	}
	alice.must(put, "/rooms/"+id+"/redact/"+first+"/r", map[string]any{})
	if total, _ := inbox(""); total != 0 {
		t.Errorf("a deleted message is still in the inbox")
	}

	bob.refused(put, played+"/"+text, map[string]any{"played": true}, 400, "M_INVALID_PARAM")
	bob.refused(put, played+"/"+second, map[string]any{"position": -1}, 400, "M_INVALID_PARAM")
	bob.refused(put, played+"/"+second, map[string]any{"played": "yes"}, 400, "M_BAD_JSON")
	bob.refused(put, played+"/$unknown", map[string]any{"played": true}, 404, "M_NOT_FOUND")
	w.person("carol").refused(put, played+"/"+second, map[string]any{"played": true}, 404, "M_NOT_FOUND")
}

// Whatever happens and however often it is looked into, the inbox holds what a slow count of all that happened says.
func TestInboxIsWhatIsUnplayed(t *testing.T) {
	w := newWorld(t, quiet())
	alice, bob := w.person("alice"), w.person("bob")
	type message struct {
		room, id string
		played   bool
		gone     bool // redacted, or from before bob came (back)
	}
	var all []*message
	rooms := make([]string, 3)
	inside := make([]bool, len(rooms))
	for i := range rooms {
		rooms[i] = alice.must(post, "/createRoom", map[string]any{"preset": "public_chat"})["room_id"].(string)
	}
	voice := "/_matrix/client/unstable/im.parley.voice"
	look := func(step int) {
		t.Helper()
		var want, got []string
		for _, m := range all {
			if i := slices.Index(rooms, m.room); !m.gone && !m.played && inside[i] {
				want = append(want, m.id)
			}
		}
		from := ""
		for page := 0; ; page++ {
			answer := bob.must(get, voice+"/inbox?limit=3"+from, nil)
			for _, e := range answer["events"].([]any) {
				got = append(got, e.(map[string]any)["event_id"].(string))
			}
			if total := answer["total"].(float64); int(total) != len(want) {
				t.Fatalf("step %d: %v messages, want %d", step, total, len(want))
			}
			end, more := answer["end"].(string)
			if !more {
				break
			}
			from = "&from=" + end
		}
		if !slices.Equal(got, want) {
			t.Fatalf("step %d: got %v, want %v", step, got, want)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for step := range 600 {
		i := random.IntN(len(rooms))
		var m *message
		if len(all) > 0 {
			m = all[random.IntN(len(all))]
		}
		switch kind := random.IntN(12); {
		case kind < 4:
			sender := []*person{alice, alice, bob}[random.IntN(3)]
			if sender == bob && !inside[i] {
				continue
			}
			id := sender.must(put, "/rooms/"+rooms[i]+"/send/m.room.message/"+strconv.Itoa(step), map[string]any{
				"msgtype": "m.audio", "body": "v", "url": "mxc://elsewhere/x", "org.matrix.msc3245.voice": map[string]any{}})["event_id"].(string)
			all = append(all, &message{room: rooms[i], id: id, gone: sender == bob || !inside[i]})
		case kind < 8 && m != nil && !m.gone && inside[slices.Index(rooms, m.room)]:
			m.played = kind < 7
			if got := bob.ask(put, voice+"/rooms/"+m.room+"/played/"+m.id, map[string]any{"played": m.played}); got.Code != 200 {
				t.Fatal(got.Code, got.Body)
			}
		case kind == 8 && m != nil && !m.gone:
			alice.must(put, "/rooms/"+m.room+"/redact/"+m.id+"/r"+strconv.Itoa(step), map[string]any{})
			m.gone = true
		case kind == 9:
			if inside[i] {
				bob.must(post, "/rooms/"+rooms[i]+"/leave", map[string]any{})
			} else {
				bob.must(post, "/join/"+rooms[i], map[string]any{})
				for _, m := range all {
					m.gone = m.gone || m.room == rooms[i]
				}
			}
			inside[i] = !inside[i]
		default:
			look(step)
		}
	}
	look(600)
}

// A player that jumps: how long until the first byte of a part is there, by the authenticated path and by a link.
func BenchmarkRangeOfRecording(b *testing.B) {
	w := newWorld(b, quiet())
	alice := w.person("alice")
	file := bytes.Repeat([]byte("three kilobytes a second "), 60*3000/25)
	up := ask(w.handler, post, "/_matrix/media/v3/upload", string(file), "Content-Type", "audio/ogg", "Authorization", "Bearer "+alice.token)
	id := strings.TrimRight(strings.TrimPrefix(up.Body.String(), `{"content_uri":"mxc://test/`), "\"}\n")
	link := alice.must(post, "/_matrix/client/unstable/im.parley.voice/link/test/"+id, nil)["path"].(string)
	for name, path := range map[string]string{"token": "/_matrix/client/v1/media/download/test/" + id, "link": link} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if got := ask(w.handler, get, path, "", "Authorization", "Bearer "+alice.token, "Range", "bytes=144000-144000"); got.Code != 206 || got.Body.Len() != 1 {
					b.Fatal(got.Code)
				}
			}
		})
	}
}
