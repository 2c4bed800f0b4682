package storage

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/ncruces/go-sqlite3/vfs"
	"pgregory.net/rapid"
)

// memoryFile is a file in memory.
type memoryFile struct {
	vfs.File
	bytes  []byte
	writes int
	full   error
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	f.writes++
	if f.full != nil {
		return 0, f.full
	}
	if n := int(off) + len(p); n > len(f.bytes) {
		f.bytes = append(f.bytes, make([]byte, n-len(f.bytes))...)
	}
	return copy(f.bytes[off:], p), nil
}

func (f *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.bytes)) {
		return 0, io.EOF
	}
	n := copy(p, f.bytes[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memoryFile) Truncate(size int64) error {
	f.bytes = f.bytes[:min(int(size), len(f.bytes))]
	return nil
}

func (f *memoryFile) Size() (int64, error)    { return int64(len(f.bytes)), nil }
func (f *memoryFile) Sync(vfs.SyncFlag) error { return nil }
func (f *memoryFile) Close() error            { return nil }

func TestGatheredLogReadsLikeAFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plain, under := &memoryFile{}, &memoryFile{}
		gathered := &walFile{File: under}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			off := rapid.Int64Range(0, 100_000).Draw(t, "off")
			if rapid.Bool().Draw(t, "append") {
				off = int64(len(plain.bytes))
			}
			n := rapid.SampledFrom([]int{1, 24, 4096, 70_000}).Draw(t, "n")
			switch rapid.SampledFrom([]string{"write", "write", "write", "read", "size", "truncate", "sync"}).Draw(t, "op") {
			case "write":
				p := bytes.Repeat([]byte{byte(off), byte(n)}, n)[:n]
				_, _ = plain.WriteAt(p, off)
				if got, err := gathered.WriteAt(p, off); got != n || err != nil {
					t.Fatal(got, err)
				}
			case "read":
				a, b := make([]byte, n), make([]byte, n)
				n1, err1 := plain.ReadAt(a, off)
				n2, err2 := gathered.ReadAt(b, off)
				if n1 != n2 || err1 != err2 || !bytes.Equal(a, b) {
					t.Fatalf("read %d %v, want %d %v", n2, err2, n1, err1)
				}
			case "size":
				want, _ := plain.Size()
				if got, err := gathered.Size(); got != want || err != nil {
					t.Fatalf("size %d %v, want %d", got, err, want)
				}
			case "truncate":
				_ = plain.Truncate(off)
				if err := gathered.Truncate(off); err != nil {
					t.Fatal(err)
				}
			case "sync":
				if err := gathered.Sync(vfs.SYNC_FULL); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(plain.bytes, under.bytes) {
					t.Fatal("after a sync something is not in the file")
				}
			}
		}
		if err := gathered.Close(); err != nil || !bytes.Equal(plain.bytes, under.bytes) {
			t.Fatalf("the closed file differs: %v", err)
		}
	})
}

func TestGatheredLogSaysAtTheSyncThatTheDiskIsFull(t *testing.T) {
	full := errors.New("full")
	f := &walFile{File: &memoryFile{full: full}}
	if _, err := f.WriteAt([]byte("frame"), 32); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(vfs.SYNC_FULL); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

func TestGatheredLogIsOneWriteForManyFrames(t *testing.T) {
	under := &memoryFile{}
	f := &walFile{File: under}
	_, _ = f.WriteAt(make([]byte, 32), 0)
	frame := func(i int, size byte) {
		header := make([]byte, 24)
		header[7] = size
		_, _ = f.WriteAt(header, 32+int64(i)*4120)
		_, _ = f.WriteAt(make([]byte, 4096), 32+int64(i)*4120+24)
	}
	for i := range 10 {
		frame(i, 0)
	}
	if under.writes != 1 {
		t.Errorf("%d writes before the commit, want that of the log's header", under.writes)
	}
	frame(10, 1) // ends the transaction
	if under.writes != 2 || len(under.bytes) != 32+11*4120 {
		t.Errorf("%d writes and %d bytes after the commit", under.writes, len(under.bytes))
	}
	header := make([]byte, 24)
	header[7] = 1
	_, _ = f.WriteAt(header, 32+10*4120) // its checksum is written anew
	if under.writes != 3 {
		t.Error("a frame that was written again waits for the sync")
	}
}
