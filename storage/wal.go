package storage

import (
	"encoding/binary"

	"github.com/ncruces/go-sqlite3/vfs"
)

// walVFSName is how the DSN asks for walVFS.
const walVFSName = "parley"

func init() {
	if os, ok := vfs.Find("").(vfs.VFSFilename); ok { // it always is
		vfs.Register(walVFSName, walVFS{os})
	}
}

// walVFS is the system's files, but for SQLite's write-ahead log, which is a [walFile].
type walVFS struct{ vfs.VFSFilename }

func (v walVFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	file, flags, err := v.VFSFilename.OpenFilename(name, flags)
	if err == nil && flags&vfs.OPEN_WAL != 0 {
		file = &walFile{File: file}
	}
	return file, flags, err
}

// walFile gathers what SQLite appends to its log and writes it with few system calls: SQLite writes each page on its own, and the 24
// bytes before it too. What is gathered is of a transaction under way, which this connection alone looks at, through this file: with the
// frame that ends a transaction all is written, before SQLite syncs the log or tells other connections of the commit. It is for one
// connection, so for one goroutine at a time.
type walFile struct {
	vfs.File
	from    int64  // where pending belongs
	pending []byte // not written yet
	ending  bool   // the last frame's header says that it ends a transaction; its page comes next
	end     int64  // of what was ever written since the log began anew
}

const (
	// walGather is the most bytes that are gathered.
	walGather      = 64 << 10
	walHeader      = 32 // bytes
	walFrameHeader = 24 // bytes; those from 4 to 8 are zero unless the frame ends a transaction
)

func (f *walFile) WriteAt(p []byte, off int64) (int, error) {
	if off == 0 && len(p) == walHeader {
		f.end = 0 // the log begins anew
	}
	if off < f.end || off == 0 { // no frame that is appended
		if err := f.flush(); err != nil {
			return 0, err
		}
		f.end = max(f.end, off+int64(len(p)))
		return f.File.WriteAt(p, off)
	}
	if off != f.from+int64(len(f.pending)) || len(f.pending)+len(p) > walGather {
		if err := f.flush(); err != nil {
			return 0, err
		}
		f.from = off
	}
	f.pending = append(f.pending, p...)
	f.end = off + int64(len(p))
	if f.ending {
		f.ending = false
		return len(p), f.flush()
	}
	f.ending = len(p) == walFrameHeader && binary.BigEndian.Uint32(p[4:]) != 0
	return len(p), nil
}

// flush writes what was gathered. After an error it is gone, as the transaction then is.
func (f *walFile) flush() error {
	if len(f.pending) == 0 {
		return nil
	}
	_, err := f.File.WriteAt(f.pending, f.from)
	f.from += int64(len(f.pending))
	f.pending = f.pending[:0]
	return err
}

func (f *walFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *walFile) Sync(flags vfs.SyncFlag) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Sync(flags)
}

func (f *walFile) Truncate(size int64) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *walFile) Size() (int64, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.Size()
}

func (f *walFile) Close() error {
	err := f.flush()
	if err2 := f.File.Close(); err == nil {
		err = err2
	}
	return err
}
