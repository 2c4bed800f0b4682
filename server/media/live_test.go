package media

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// webm is a recording as browsers make it.
func webm(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("../audio/testdata/live-ffmpeg.webm")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// speak begins a recording of alice's.
func (w *world) speak(t *testing.T, content []byte) URI {
	t.Helper()
	w.Live = DefaultLiveConfig()
	uri, _, err := w.Create(t.Context(), alice)
	if err != nil {
		t.Fatal(err)
	}
	appendLive(t, w.Repository, uri, 0, content)
	return uri
}

func appendLive(t testing.TB, r *Repository, uri URI, at int, content []byte) {
	t.Helper()
	size, err := r.AppendLive(t.Context(), alice, uri, LiveAppend{Offset: int64(at), Content: content, ContentType: "audio/webm;codecs=opus"})
	if err != nil || size != int64(at+len(content)) {
		t.Fatalf("append at %d: %d, %v", at, size, err)
	}
}

func openLive(t *testing.T, r *Repository, uri URI) *File {
	t.Helper()
	f, err := r.Open(t.Context(), Request{URI: uri, Wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if !f.Live {
		t.Fatal("it is not live")
	}
	return f
}

// What comes to one process is heard through another one, and a client may go on with either.
func TestLiveRecordingIsFollowedThroughAnotherProcess(t *testing.T) {
	url, dir, file := storagetest.PostgreSQLURL(t), t.TempDir(), webm(t)
	var processes []*Repository
	for range 2 {
		db, err := storage.Open(t.Context(), storage.Config{URL: url}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		blobs, err := storage.OpenDiskBlobs(dir)
		if err != nil {
			t.Fatal(err)
		}
		r := New(Options{Config: DefaultConfig(), Live: DefaultLiveConfig(), Server: "here.example", DB: db, Blobs: blobs, Log: slog.New(slog.DiscardHandler)})
		t.Cleanup(func() { r.Close(); db.Close() })
		processes = append(processes, r)
	}
	a, b := processes[0], processes[1]
	uri, _, err := a.Create(t.Context(), alice)
	if err != nil {
		t.Fatal(err)
	}
	appendLive(t, a, uri, 0, file[:3000])
	through := []*File{openLive(t, a, uri), openLive(t, b, uri)}
	heard := make([][]byte, 2)
	hear := func(from, to int) {
		t.Helper()
		for i, f := range through {
			part := make([]byte, to-from)
			if _, err := io.ReadFull(f, part); err != nil {
				t.Fatal(err)
			}
			heard[i] = append(heard[i], part...)
		}
	}
	hear(0, 2800)
	appendLive(t, b, uri, 3000, file[3000:6000]) // the scanner goes on from the rows
	hear(2800, 5800)
	appendLive(t, a, uri, 6000, file[6000:])
	if _, recording, err := b.EndLive(t.Context(), alice, uri, false); err != nil || recording.DurationMS() != 3960 {
		t.Errorf("ended by the other process: %+v, %v", recording, err)
	}
	for i, f := range through {
		rest, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(append(heard[i], rest...), file) {
			t.Errorf("process %d: %d bytes of %d, %v", i, len(heard[i])+len(rest), len(file), err)
		}
	}
	if err := a.lookAfterLives(t.Context()); err != nil {
		t.Fatal(err)
	}
	if open, _ := a.LiveCounts(); open != 0 {
		t.Errorf("the process where it began counts %d recordings open", open)
	}
}

func TestLiveRecordingIsServedAsItCanBe(t *testing.T) {
	w, file := newWorld(t, nil), webm(t)
	uri := w.speak(t, file[:6000])
	head := httptest.NewRecorder()
	openLive(t, w.Repository, uri).ServeHTTP(head, httptest.NewRequest("HEAD", "/", nil))
	if head.Code != 200 || head.Header().Get("Content-Length") != "" || head.Header().Get("ETag") != "" || head.Header().Get("Content-Type") != "audio/webm;codecs=opus" {
		t.Errorf("HEAD: %d %v", head.Code, head.Header())
	}
	asked := []func() (*File, error){
		func() (*File, error) { return w.Open(t.Context(), Request{URI: uri}) },
		func() (*File, error) { return w.Open(t.Context(), Request{URI: uri, Container: audio.WebM}) },
		func() (*File, error) {
			query, _, err := w.Repository.Link(t.Context(), uri, "")
			if err != nil {
				return nil, err
			}
			return w.OpenLink(t.Context(), uri, query)
		},
	}
	_, err := w.Thumbnail(t.Context(), Request{URI: uri, Wait: time.Millisecond}, ThumbnailSize{Width: 32, Height: 32})
	wantCode(t, err, 504, "M_NOT_YET_UPLOADED")
	answers := make(chan []byte)
	for _, open := range asked {
		f, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if !f.Live {
			t.Error("an answer is not live")
		}
		go func() {
			defer f.Close()
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Range", "bytes=100-199") // nobody knows yet of how many
			answer := httptest.NewRecorder()
			f.ServeHTTP(answer, r)
			if answer.Code != http.StatusOK {
				t.Errorf("got %d", answer.Code)
			}
			answers <- answer.Body.Bytes()
		}()
	}
	other := make(chan *File)
	go func() { // another container is to be had at the end
		f, err := w.Open(t.Context(), Request{URI: uri, Container: audio.Ogg})
		if err != nil {
			t.Error(err)
		}
		other <- f
	}()
	appendLive(t, w.Repository, uri, 6000, file[6000:])
	if _, _, err := w.EndLive(t.Context(), alice, uri, false); err != nil {
		t.Fatal(err)
	}
	for range asked {
		if got := <-answers; !bytes.Equal(got, file) {
			t.Errorf("%d bytes of %d", len(got), len(file))
		}
	}
	if f := <-other; f != nil {
		defer f.Close()
		if f.ContentType != "audio/ogg" || f.Live || f.Size <= 0 {
			t.Errorf("the other container: %+v", f)
		}
	}
}

func TestLiveRecordingThatIsDeleted(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		file := webm(t)
		for name, remove := range map[string]func(*world, URI) error{
			"alone": func(w *world, uri URI) error { return w.Delete(t.Context(), uri) },
			"with all of the user's": func(w *world, uri URI) error {
				_, err := w.DeleteUploads(t.Context(), alice)
				return err
			},
			"by the user": func(w *world, uri URI) error { return w.CancelLive(t.Context(), alice, uri) },
		} {
			w := newWorldOn(t, db, nil)
			uri := w.speak(t, file[:6000])
			f := openLive(t, w.Repository, uri)
			if err := remove(w, uri); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(f); matrix.ErrorCode(err) != "M_NOT_FOUND" {
				t.Errorf("%s: a listener got %d bytes, %v", name, len(got), err)
			}
			_, err := w.Open(t.Context(), Request{URI: uri})
			wantCode(t, err, 404, "M_NOT_FOUND")
			_, err = w.AppendLive(t.Context(), alice, uri, LiveAppend{Offset: 6000, Content: file[6000:]})
			wantCode(t, err, 404, "M_NOT_FOUND")
			if err := w.ForgetLive(t.Context(), uri.MediaID); err != nil {
				t.Fatal(err)
			}
			if _, err := db.LiveChunk(t.Context(), uri.MediaID, 0); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("%s: its bytes are still there: %v", name, err)
			}
			if _, err := db.Media(t.Context(), uri.Server, uri.MediaID); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("%s: its media ID is still there: %v", name, err)
			}
		}
	})
}

func TestLiveRecordingUnderALegalHoldIsKept(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		w, file := newWorldOn(t, db, nil), webm(t)
		uri := w.speak(t, file[:6000])
		if err := db.SetHold(t.Context(), storage.Hold{Kind: "user", Target: string(alice), SetBy: bob, Set: w.Now()}); err != nil {
			t.Fatal(err)
		}
		if err := w.CancelLive(t.Context(), alice, uri); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time after a crash
			row, err := db.LiveRecording(t.Context(), uri.MediaID)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.KeepHeld(t.Context(), row); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.ForgetLive(t.Context(), uri.MediaID); err != nil {
			t.Fatal(err)
		}
		got := w.read(t, Request{URI: uri})
		if len(got) < 5500 || !strings.HasPrefix(string(file), got) {
			t.Errorf("%d bytes were kept", len(got))
		}
	})
}

// Once something is being said, the time in which a media ID must be used does not matter any more; nor do others get their bytes in.
func TestLiveRecordingOutlivesItsReservation(t *testing.T) {
	w, file := newWorld(t, nil), webm(t)
	uri := w.speak(t, file[:6000])
	w.pass(w.Config.PendingExpiry + time.Hour)
	if err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := w.UploadTo(t.Context(), alice, uri, Upload{Body: strings.NewReader("x"), Size: 1})
	wantCode(t, err, 409, "M_CANNOT_OVERWRITE_MEDIA")
	appendLive(t, w.Repository, uri, 6000, file[6000:])
	if _, _, err := w.EndLive(t.Context(), alice, uri, false); err != nil {
		t.Fatal(err)
	}
	if got := w.read(t, Request{URI: uri}); got != string(file) {
		t.Errorf("%d bytes of %d", len(got), len(file))
	}
}

func TestLiveRecordingHasOnlySoManyListeners(t *testing.T) {
	w := newWorld(t, nil)
	uri := w.speak(t, webm(t)[:6000])
	w.Live.MaxReaders = 2
	first := openLive(t, w.Repository, uri)
	openLive(t, w.Repository, uri)
	_, err := w.Open(t.Context(), Request{URI: uri})
	wantCode(t, err, 429, "M_LIMIT_EXCEEDED")
	first.Close()
	openLive(t, w.Repository, uri)
}

// A piece of 250 ms, durable when it returns.
func BenchmarkAppendLive(b *testing.B) {
	for name, open := range map[string]func(testing.TB) *storage.DB{"sqlite": storagetest.New, "postgres": storagetest.NewPostgreSQL} {
		b.Run(name, func(b *testing.B) {
			blobs, err := storage.OpenDiskBlobs(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			r := New(Options{Config: DefaultConfig(), Live: DefaultLiveConfig(), Server: "here.example", DB: open(b), Blobs: blobs, Log: slog.New(slog.DiscardHandler)})
			defer r.Close()
			r.Config.MaxUploadBytes = 1 << 40
			uri, _, err := r.Create(b.Context(), alice)
			if err != nil {
				b.Fatal(err)
			}
			var page bytes.Buffer
			w, err := audio.NewOggWriter(&page, audio.Head{Channels: 1, PreSkip: 312, InputRate: 48000}, 1)
			if err != nil {
				b.Fatal(err)
			}
			at := 0
			for b.Loop() {
				for range 12 {
					if err := w.WritePacket(append([]byte{31 << 3}, make([]byte, 60)...)); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Flush(); err != nil {
					b.Fatal(err)
				}
				appendLive(b, r, uri, at, page.Bytes())
				at += page.Len()
				page.Reset()
			}
		})
	}
}
