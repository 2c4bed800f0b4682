package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ErrNoBlob says that no blob lies under the hash.
var ErrNoBlob = errors.New("no such blob")

// A BlobHash is the SHA-256 of a blob's bytes, and the only name a blob has.
type BlobHash [sha256.Size]byte

// String writes the hash as 64 lower-case hexadecimal digits.
func (h BlobHash) String() string { return hex.EncodeToString(h[:]) }

// IsZero says that this is no hash: a file that has not been uploaded yet.
func (h BlobHash) IsZero() bool { return h == BlobHash{} }

// ParseBlobHash reads what String wrote. Anything but 64 lower-case hexadecimal digits is an error,
// so that a parsed hash can stand in a path.
func ParseBlobHash(s string) (BlobHash, error) {
	var h BlobHash
	if len(s) != 2*len(h) {
		return h, fmt.Errorf("blob hash of %d characters", len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return h, fmt.Errorf("blob hash: %w", err)
	}
	if h.String() != s {
		return BlobHash{}, errors.New("blob hash with capital letters")
	}
	return h, nil
}

// Blobs keeps immutable byte strings, each stored once under the SHA-256 of its content: on disk (DiskBlobs) or
// in an S3-compatible bucket (S3Blobs). It counts no references: that is the work of the rows in the database,
// see media.go, and so is the order of writing and deleting the same blob.
type Blobs interface {
	// Stage begins a new blob. The caller ends it with Commit or Discard.
	Stage() (*StagedBlob, error)
	// Open reads a blob; the caller closes it. It is ErrNoBlob if there is none. ctx bounds all the reading.
	Open(ctx context.Context, hash BlobHash) (Blob, error)
	// Size is the number of bytes of a blob, or ErrNoBlob.
	Size(ctx context.Context, hash BlobHash) (int64, error)
	// Delete removes a blob and gives its space back. Deleting what is not there is no error.
	Delete(ctx context.Context, hash BlobHash) error
	// Each calls visit for every blob in no order, until visit returns an error, which it then returns.
	Each(ctx context.Context, visit func(BlobMeta) error) error

	// put makes the staged file durable under its hash. It may move the file away from path.
	put(ctx context.Context, hash BlobHash, path string, size int64) error
}

// Blob is the content of a blob, opened.
type Blob interface {
	io.ReadSeekCloser
	io.ReaderAt
}

// BlobMeta is what a store knows about a blob without opening it.
type BlobMeta struct {
	Hash    BlobHash
	Size    int64     // bytes
	Written time.Time // when it was last committed
}

// A StagedBlob is a blob being written: a temporary file and the hash of what it holds so far. Write, Commit and Discard
// belong to one goroutine; ReadAt may be called by others at the same time, also after Commit or Discard, until Release.
// So a download can be followed while it still arrives.
type StagedBlob struct {
	store Blobs
	file  *os.File
	sum   hash.Hash
	ended bool

	mu      sync.Mutex // guards the fields below
	size    int64
	readers int // the writer is one of them
}

func stage(store Blobs, dir string) (*StagedBlob, error) {
	file, err := os.CreateTemp(dir, "blob-*")
	if err != nil {
		return nil, fmt.Errorf("stage a blob: %w", err)
	}
	return &StagedBlob{store: store, file: file, sum: sha256.New(), readers: 1}, nil
}

// Write appends to the blob.
func (b *StagedBlob) Write(p []byte) (int, error) {
	n, err := b.file.Write(p)
	b.sum.Write(p[:n])
	b.mu.Lock()
	b.size += int64(n)
	b.mu.Unlock()
	return n, err
}

// Size is the number of bytes written so far.
func (b *StagedBlob) Size() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size
}

// ReadAt reads what has been written. At the present end it returns io.EOF, though more may be written later.
func (b *StagedBlob) ReadAt(p []byte, off int64) (int, error) { return b.file.ReadAt(p, off) }

// Commit makes the blob durable: after it has returned, the bytes survive the loss of power. It does not release the
// blob. A second Commit or a Write after it is a bug of the caller's.
func (b *StagedBlob) Commit(ctx context.Context) (BlobHash, int64, error) {
	b.ended = true
	if err := b.file.Sync(); err != nil {
		os.Remove(b.file.Name())
		return BlobHash{}, 0, fmt.Errorf("sync staged blob: %w", err)
	}
	hash := BlobHash(b.sum.Sum(nil))
	size := b.Size()
	err := b.store.put(ctx, hash, b.file.Name(), size)
	os.Remove(b.file.Name()) // gone already if put moved it
	if err != nil {
		return BlobHash{}, 0, fmt.Errorf("put blob: %w", err)
	}
	return hash, size, nil
}

// Discard gives up a blob that was not committed, and does nothing to one that was: it can be deferred. It releases
// the writer's hold.
func (b *StagedBlob) Discard() {
	if !b.ended {
		b.ended = true
		os.Remove(b.file.Name())
	}
	b.Release()
}

// Retain keeps the bytes readable through ReadAt until one more Release. It must be called by someone who holds the
// blob already.
func (b *StagedBlob) Retain() {
	b.mu.Lock()
	b.readers++
	b.mu.Unlock()
}

// Release ends one hold; after the last one the file is closed.
func (b *StagedBlob) Release() {
	b.mu.Lock()
	b.readers--
	last := b.readers == 0
	b.mu.Unlock()
	if last {
		b.file.Close()
	}
}

// DiskBlobs keeps blobs as files, <dir>/ab/cd…: the first two digits of the hash are the folder. Staged files lie in
// <dir>/tmp, which is on the same file system and emptied when the store is opened.
type DiskBlobs struct {
	dir string
}

// OpenDiskBlobs makes the directory if it is missing (mode 0700) and removes what a crash left half written.
// Several processes may share the directory only if they open it before they write.
func OpenDiskBlobs(dir string) (*DiskBlobs, error) {
	tmp := filepath.Join(dir, "tmp")
	if err := emptyDir(tmp); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	return &DiskBlobs{dir: dir}, nil
}

func emptyDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

// Stage implements Blobs.
func (d *DiskBlobs) Stage() (*StagedBlob, error) { return stage(d, filepath.Join(d.dir, "tmp")) }

func (d *DiskBlobs) path(hash BlobHash) string {
	name := hash.String()
	return filepath.Join(d.dir, name[:2], name[2:])
}

// Open implements Blobs. The result is an *os.File, so that the kernel can send it.
func (d *DiskBlobs) Open(_ context.Context, hash BlobHash) (Blob, error) {
	file, err := os.Open(d.path(hash))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoBlob
	}
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return file, nil
}

// Size implements Blobs.
func (d *DiskBlobs) Size(_ context.Context, hash BlobHash) (int64, error) {
	info, err := os.Stat(d.path(hash))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, ErrNoBlob
	}
	if err != nil {
		return 0, fmt.Errorf("size of blob: %w", err)
	}
	return info.Size(), nil
}

// Delete implements Blobs.
func (d *DiskBlobs) Delete(_ context.Context, hash BlobHash) error {
	path := d.path(hash)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// Each implements Blobs.
func (d *DiskBlobs) Each(ctx context.Context, visit func(BlobMeta) error) error {
	return filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		hash, err := ParseBlobHash(filepath.Base(filepath.Dir(path)) + entry.Name())
		if err != nil {
			return nil // a staged or foreign file
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted since
		}
		if err != nil {
			return err
		}
		return visit(BlobMeta{Hash: hash, Size: info.Size(), Written: info.ModTime()})
	})
}

func (d *DiskBlobs) put(_ context.Context, hash BlobHash, path string, _ int64) error {
	target := d.path(hash)
	folder := filepath.Dir(target)
	switch err := os.Mkdir(folder, 0o700); {
	case err == nil:
		if err := syncDir(d.dir); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	// A blob that is there already is replaced by equal bytes: its time of writing becomes now, which protects
	// it from a sweep of unreferenced blobs, and damage on the disk is mended.
	if err := os.Rename(path, target); err != nil {
		return err
	}
	return syncDir(folder)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
