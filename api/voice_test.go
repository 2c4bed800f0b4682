package api

import (
	"os"
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
