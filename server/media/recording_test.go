package media

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"parley.im/parley/server/audio"
	"parley.im/parley/storage"
)

func speech(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("../audio/testdata/speech.ogg")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) voice(t *testing.T, content []byte) URI {
	t.Helper()
	return w.upload(t, Upload{Body: bytes.NewReader(content), Size: int64(len(content)), ContentType: "audio/ogg; codecs=opus", Filename: "Voice message.ogg"})
}

func TestUploadedRecordingIsCountedAndMeasured(t *testing.T) {
	w := newWorld(t, nil)
	uri := w.voice(t, speech(t))
	m, known, err := w.Recording(t.Context(), uri)
	if err != nil || known.Container != "ogg" || known.Channels != 1 || known.Duration().Milliseconds() != 3960 {
		t.Fatal(known, err)
	}
	waveform, err := w.Waveform(t.Context(), m.Hash)
	if err != nil || len(waveform) != audio.WaveformPoints {
		t.Fatal(waveform, err)
	}
	_, known, err = w.Recording(t.Context(), uri)
	if err != nil || len(known.Waveform) != audio.WaveformPoints {
		t.Fatal("the waveform was not kept:", err)
	}
	w.Config.MaxDecoded = 0
	if waveform, err := w.Waveform(t.Context(), m.Hash); err != nil || waveform == nil {
		t.Error("what is kept is not asked for again:", err)
	}
}

func TestMalformedRecordingIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	good := speech(t)
	for name, content := range map[string][]byte{
		"chained":         append(bytes.Clone(good), good...),
		"with a zip file": append(bytes.Clone(good), "PK\x03\x04"...),
		"cut off":         good[:len(good)-1],
	} {
		_, err := w.Upload(t.Context(), alice, Upload{Body: bytes.NewReader(content), Size: -1, ContentType: "audio/ogg"})
		if err == nil {
			t.Errorf("%s was accepted", name)
			continue
		}
		wantCode(t, err, 400, "M_INVALID_PARAM")
	}
	for name, content := range map[string][]byte{
		"encrypted": []byte(strings.Repeat("\x8a\x91\xfe", 1000)), "a film": []byte("\x00\x00\x00\x18ftypmp42"),
	} {
		uri, err := w.Upload(t.Context(), alice, Upload{Body: bytes.NewReader(content), Size: -1})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := w.Recording(t.Context(), uri); err == nil {
			t.Errorf("%s is taken for a recording", name)
		}
	}
}

func TestRenditionHasTheSamePackets(t *testing.T) {
	w := newWorld(t, nil)
	original := speech(t)
	uri := w.voice(t, original)
	for _, to := range []audio.Container{audio.WebM, audio.MP4, audio.Ogg, audio.WebM} {
		f, err := w.Open(t.Context(), Request{URI: uri, Container: to})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		info, err := audio.Inspect(bytes.NewReader(b), int64(len(b)), 0)
		if err != nil || info.Container != to || info.Duration().Milliseconds() != 3960 {
			t.Errorf("%s: %+v, %v", to, info, err)
		}
		if f.ContentType != to.ContentType() || f.Filename != "Voice message."+string(to) || f.Size != int64(len(b)) || f.Hash.IsZero() {
			t.Errorf("%s: %+v", to, f)
		}
		f.Close()
	}
	_, err := w.Open(t.Context(), Request{URI: w.upload(t, file("text")), Container: audio.MP4})
	wantCode(t, err, 400, "M_INVALID_PARAM")
	aac, err := os.ReadFile("../audio/testdata/speech-aac.mp4")
	if err != nil {
		t.Fatal(err)
	}
	safari := w.voice(t, aac)
	if got := w.read(t, Request{URI: safari, Container: audio.MP4}); got != string(aac) {
		t.Error("AAC is not had as it is")
	}
	_, err = w.Open(t.Context(), Request{URI: safari, Container: audio.Ogg})
	wantCode(t, err, 400, "M_INVALID_PARAM")
	if err := w.Delete(t.Context(), safari); err != nil {
		t.Fatal(err)
	}

	if err := w.Delete(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	left := 0
	err = w.Blobs.Each(t.Context(), func(b storage.BlobMeta) error { left++; return nil })
	if err != nil || left != 1 {
		t.Errorf("%d blobs are left, want the text alone: %v", left, err)
	}
}

func TestRemoteRecordingIsCountedToo(t *testing.T) {
	w := newWorld(t, nil)
	w.remote.download = func(string) (*RemoteFile, error) { return remoteFile(bytes.NewReader(speech(t))), nil }
	if _, _, err := w.Recording(t.Context(), far); err == nil {
		t.Fatal("known before it was fetched")
	}
	if got := w.read(t, Request{URI: far}); got != string(speech(t)) {
		t.Fatal("other bytes")
	}
	if _, known, err := w.Recording(t.Context(), far); err != nil || known.Container != "ogg" {
		t.Fatal(known, err)
	}
	w.remote.download = func(string) (*RemoteFile, error) {
		return remoteFile(bytes.NewReader(append(speech(t), "PK"...))), nil
	}
	other := URI{"there.example", "polyglot"}
	if got := w.read(t, Request{URI: other}); len(got) != len(speech(t))+2 {
		t.Fatal("a file that is no recording must still be had")
	}
	if _, _, err := w.Recording(t.Context(), other); err == nil {
		t.Fatal("a polyglot is taken for a recording")
	}
}
