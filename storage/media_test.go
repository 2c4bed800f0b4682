package storage_test

import (
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

var mediaNow = time.UnixMilli(1_800_000_000_000)

func someMedia(id, content string) storage.Media {
	return storage.Media{
		Server: "here.example", MediaID: id, Hash: sha256.Sum256([]byte(content)), Size: int64(len(content)),
		ContentType: "audio/ogg", Filename: "Sprachnachricht – é.ogg", Uploader: "@alice:here.example", Created: mediaNow,
	}
}

func addMedia(t *testing.T, db *storage.DB, m storage.Media) {
	t.Helper()
	if err := db.AddMedia(t.Context(), m, nil, 0); err != nil {
		t.Fatal(err)
	}
}

func doomed(t *testing.T, db *storage.DB, at time.Time) storage.DoomedBlobs {
	t.Helper()
	d, err := db.ClaimDoomedBlobs(t.Context(), at, 100)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestMediaIsFoundAsItWasAdded(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		want := someMedia("a", "hello")
		addMedia(t, db, want)
		got, err := db.Media(t.Context(), "here.example", "a")
		if err != nil || !cmp.Equal(got, want) {
			t.Fatalf("%v\n%s", err, cmp.Diff(want, got))
		}
		if err := db.AddMedia(t.Context(), want, nil, 0); !errors.Is(err, storage.ErrMediaExists) {
			t.Fatalf("added twice: %v", err)
		}
		if _, err := db.Media(t.Context(), "here.example", "A"); !errors.Is(err, storage.ErrNotFound) {
			t.Fatalf("media IDs must differ by case: %v", err)
		}
	})
}

func TestReservedMediaIsFilledAndExpires(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		for _, id := range []string{"a", "b"} {
			m := storage.Media{Server: "here.example", MediaID: id, Uploader: "@alice:here.example", Created: mediaNow, Expires: mediaNow.Add(time.Hour)}
			if err := db.ReserveMedia(ctx, m, 2); err != nil {
				t.Fatal(err)
			}
		}
		third := storage.Media{Server: "here.example", MediaID: "c", Uploader: "@alice:here.example", Created: mediaNow, Expires: mediaNow.Add(time.Hour)}
		if err := db.ReserveMedia(ctx, third, 2); !errors.Is(err, storage.ErrQuota) {
			t.Fatalf("a third pending upload: %v", err)
		}
		addMedia(t, db, someMedia("a", "hello"))
		got, err := db.Media(ctx, "here.example", "a")
		if err != nil || !cmp.Equal(got, someMedia("a", "hello")) {
			t.Fatalf("%+v, %v", got, err)
		}
		if n, err := db.DeleteExpiredMedia(ctx, mediaNow.Add(2*time.Hour), 100); err != nil || n != 1 {
			t.Fatalf("%d expired, %v", n, err)
		}
		if _, err := db.Media(ctx, "here.example", "b"); !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
	})
}

func TestQuotaCountsWhatIsThere(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		addMedia(t, db, someMedia("a", "12345"))
		if err := db.AddMedia(t.Context(), someMedia("b", "123456"), nil, 10); !errors.Is(err, storage.ErrQuota) {
			t.Fatalf("over the quota: %v", err)
		}
		if err := db.AddMedia(t.Context(), someMedia("b", "12346"), nil, 10); err != nil {
			t.Fatal(err)
		}
		if n, err := db.UploadedBytes(t.Context(), "@alice:here.example"); err != nil || n != 10 {
			t.Fatalf("%d bytes, %v", n, err)
		}
	})
}

func TestLastReferenceDoomsTheBlobAndItsThumbnails(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		addMedia(t, db, someMedia("a", "picture"))
		remote := someMedia("a", "picture")
		remote.Server, remote.Uploader = "there.example", ""
		addMedia(t, db, remote)
		small := storage.Derivative{Source: remote.Hash, Kind: "crop", Width: 32, Height: 32, Hash: sha256.Sum256([]byte("small")), Size: 5, ContentType: "image/png"}
		for range 2 { // the second changes nothing
			if _, err := db.AddDerivative(ctx, small, 10); err != nil {
				t.Fatal(err)
			}
		}
		got, err := db.Derivative(ctx, remote.Hash, "crop", 32, 32)
		if err != nil || !cmp.Equal(got, small) {
			t.Fatalf("%v\n%s", err, cmp.Diff(small, got))
		}
		if _, err := db.Derivative(ctx, remote.Hash, "scale", 32, 32); !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}

		if err := db.DeleteMedia(ctx, "here.example", "a", mediaNow); err != nil {
			t.Fatal(err)
		}
		if d := doomed(t, db, mediaNow); len(d.Hashes) != 0 {
			t.Fatalf("doomed too early: %v", d.Hashes)
		}
		if n, err := db.DeleteRemoteMedia(ctx, mediaNow.Add(time.Millisecond), mediaNow, 10); err != nil || n != 1 {
			t.Fatalf("%d, %v", n, err)
		}
		d := doomed(t, db, mediaNow)
		if len(d.Hashes) != 2 {
			t.Fatalf("%d doomed, want the picture and its thumbnail", len(d.Hashes))
		}
		if err := db.AddMedia(ctx, someMedia("c", "picture"), nil, 0); !errors.Is(err, storage.ErrBlobDoomed) {
			t.Fatalf("a doomed blob was referred to: %v", err)
		}
		if added, err := db.AddDerivative(ctx, small, 10); err != nil || added {
			t.Fatalf("a thumbnail of what is gone: %v, %v", added, err)
		}
		if d := doomed(t, db, mediaNow.Add(time.Minute)); len(d.Hashes) != 0 {
			t.Fatal("claimed by two")
		}
		again := doomed(t, db, mediaNow.Add(time.Hour)) // the first claimant has died
		if err := db.ForgetBlobs(ctx, d); err != nil {
			t.Fatal(err)
		}
		if known, _ := db.KnowsBlob(ctx, remote.Hash); !known {
			t.Fatal("forgotten under a claim that was taken over")
		}
		if err := db.ForgetBlobs(ctx, again); err != nil {
			t.Fatal(err)
		}
		addMedia(t, db, someMedia("c", "picture"))
	})
}

func TestOrphanIsClaimedOnlyWithoutRow(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		m := someMedia("a", "kept")
		addMedia(t, db, m)
		if d, err := db.DoomOrphan(t.Context(), m.Hash, mediaNow); err != nil || len(d.Hashes) != 0 {
			t.Fatalf("%v, %v", d, err)
		}
		orphan := storage.BlobHash(sha256.Sum256([]byte("orphan")))
		d, err := db.DoomOrphan(t.Context(), orphan, mediaNow)
		if err != nil || len(d.Hashes) != 1 {
			t.Fatalf("%v, %v", d, err)
		}
		if err := db.ForgetBlobs(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if known, _ := db.KnowsBlob(t.Context(), orphan); known {
			t.Fatal("still known")
		}
	})
}

func TestRemoteMediaGoesInOrderOfUse(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		for _, id := range []string{"a", "b", "c"} {
			m := someMedia(id, "remote "+id)
			m.Server, m.Uploader = "there.example", ""
			addMedia(t, db, m)
		}
		addMedia(t, db, someMedia("mine", "local"))
		if err := db.TouchMedia(ctx, "there.example", "a", mediaNow.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if n, err := db.RemoteMediaBytes(ctx); err != nil || n != 24 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if n, err := db.DeleteRemoteMedia(ctx, mediaNow.Add(time.Minute), mediaNow, 10); err != nil || n != 2 {
			t.Fatalf("%d, %v", n, err)
		}
		if _, err := db.Media(ctx, "there.example", "a"); err != nil {
			t.Fatal("what was just read is gone")
		}
		if n, err := db.DeleteUploads(ctx, "@alice:here.example", 10, mediaNow); err != nil || n != 1 {
			t.Fatalf("%d, %v", n, err)
		}
	})
}

func TestURLPreviewIsKeptUntilItIsOld(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		for _, body := range []string{`{"n":1}`, `{"n":2}`} {
			if err := db.KeepURLPreview(ctx, "https://a.example/", []byte(body), mediaNow, mediaNow.Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		if body, err := db.URLPreview(ctx, "https://a.example/", mediaNow.Add(-time.Minute)); err != nil || string(body) != `{"n":2}` {
			t.Fatalf("%s, %v", body, err)
		}
		if _, err := db.URLPreview(ctx, "https://a.example/", mediaNow); !errors.Is(err, storage.ErrNotFound) {
			t.Fatalf("an old preview: %v", err)
		}
	})
}

func TestRecordingIsKnownAsLongAsItsBlob(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		m := someMedia("a", "sound")
		want := storage.Recording{Hash: m.Hash, Container: "ogg", Channels: 1, Samples: 190080}
		for _, id := range []string{"a", "b"} {
			m.MediaID = id
			if err := db.AddMedia(ctx, m, &want, 0); err != nil {
				t.Fatal(err)
			}
		}
		want.Waveform = []int{0, 512, 1024}
		if err := db.SetWaveform(ctx, m.Hash, want.Waveform); err != nil {
			t.Fatal(err)
		}
		if got, err := db.Recording(ctx, m.Hash); err != nil || !cmp.Equal(got, want) || got.Duration() != 3960*time.Millisecond {
			t.Fatalf("%v\n%s", err, cmp.Diff(want, got))
		}
		if n, err := db.DeleteUploads(ctx, m.Uploader, 10, mediaNow); err != nil || n != 2 {
			t.Fatal(n, err)
		}
		if _, err := db.Recording(ctx, m.Hash); !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
	})
}
