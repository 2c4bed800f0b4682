package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func putBlob(t *testing.T, blobs Blobs, content []byte) BlobHash {
	t.Helper()
	staged, err := blobs.Stage()
	if err != nil {
		t.Fatal(err)
	}
	defer staged.Discard()
	if _, err := staged.Write(content); err != nil {
		t.Fatal(err)
	}
	hash, size, err := staged.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if size != int64(len(content)) {
		t.Fatalf("size %d, want %d", size, len(content))
	}
	return hash
}

func testBlobs(t *testing.T, blobs Blobs) {
	ctx := t.Context()
	content := []byte("Parley, parlons, parola")
	hash := putBlob(t, blobs, content)
	if hash != sha256.Sum256(content) {
		t.Fatalf("hash %s is not the SHA-256", hash)
	}
	if again := putBlob(t, blobs, content); again != hash {
		t.Fatalf("the same bytes got another hash: %s", again)
	}
	if size, err := blobs.Size(ctx, hash); err != nil || size != int64(len(content)) {
		t.Fatalf("size %d, %v", size, err)
	}
	file, err := blobs.Open(ctx, hash)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Seek(-6, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if tail, err := io.ReadAll(file); err != nil || string(tail) != "parola" {
		t.Fatalf("tail %q, %v", tail, err)
	}
	file.Close()

	var seen []BlobMeta
	err = blobs.Each(ctx, func(m BlobMeta) error { seen = append(seen, m); return nil })
	if err != nil || len(seen) != 1 || seen[0].Hash != hash || seen[0].Size != int64(len(content)) || seen[0].Written.IsZero() {
		t.Fatalf("each: %+v, %v", seen, err)
	}

	for range 2 {
		if err := blobs.Delete(ctx, hash); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := blobs.Open(ctx, hash); !errors.Is(err, ErrNoBlob) {
		t.Fatalf("open after delete: %v", err)
	}
	if _, err := blobs.Size(ctx, hash); !errors.Is(err, ErrNoBlob) {
		t.Fatalf("size after delete: %v", err)
	}
}

func TestDiskBlobsKeepFindAndDelete(t *testing.T) {
	blobs, err := OpenDiskBlobs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	testBlobs(t, blobs)
}

func TestDiskBlobsSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	blobs, err := OpenDiskBlobs(dir)
	if err != nil {
		t.Fatal(err)
	}
	hash := putBlob(t, blobs, []byte("kept"))
	if _, err := blobs.Stage(); err != nil { // a crash: neither committed nor discarded
		t.Fatal(err)
	}
	blobs, err = OpenDiskBlobs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := blobs.Size(t.Context(), hash); err != nil || size != 4 {
		t.Fatalf("size %d, %v", size, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
		t.Fatalf("%d half-written files are left", len(left))
	}
}

func TestDiscardedBlobLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	blobs, err := OpenDiskBlobs(dir)
	if err != nil {
		t.Fatal(err)
	}
	staged, err := blobs.Stage()
	if err != nil {
		t.Fatal(err)
	}
	staged.Write([]byte("no"))
	staged.Discard()
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
		t.Fatal("a file is left")
	}
	err = blobs.Each(context.Background(), func(m BlobMeta) error { return errors.New("there is a blob") })
	if err != nil {
		t.Fatal(err)
	}
}

func TestStagedBlobIsReadWhileWrittenAndAfterCommit(t *testing.T) {
	blobs, err := OpenDiskBlobs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	staged, err := blobs.Stage()
	if err != nil {
		t.Fatal(err)
	}
	staged.Write([]byte("first "))
	staged.Retain()
	buf := make([]byte, 64)
	if n, err := staged.ReadAt(buf, 0); err != io.EOF || string(buf[:n]) != "first " {
		t.Fatalf("%q %v", buf[:n], err)
	}
	staged.Write([]byte("second"))
	hash, _, err := staged.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	staged.Discard()
	if err := blobs.Delete(t.Context(), hash); err != nil {
		t.Fatal(err)
	}
	if n, err := staged.ReadAt(buf, 6); err != io.EOF || !bytes.Equal(buf[:n], []byte("second")) {
		t.Fatalf("%q %v", buf[:n], err)
	}
	staged.Release()
}

func TestBlobHashIsStrictlyParsed(t *testing.T) {
	good := BlobHash(sha256.Sum256(nil)).String()
	if _, err := ParseBlobHash(good); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", good[1:], good + "0", "../" + good[3:], "E" + good[1:], "g" + good[1:]} {
		if _, err := ParseBlobHash(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
