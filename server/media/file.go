package media

import (
	"io"
	"net/http"
	"time"

	"parley.im/parley/storage"
)

// A File is an opened file or thumbnail. Its content is complete, or still arriving from another server; ServeHTTP knows
// the difference, and ReadAll-like callers need not.
type File struct {
	// ReadSeekCloser is the content. Seeking in a file that is still arriving waits for its end.
	io.ReadSeekCloser
	// ContentType is as it was given with the upload, sanitized; never empty.
	ContentType string
	// Filename is as it was given with the upload, or empty. ServeHTTP puts it into Content-Disposition; a
	// handler may replace it.
	Filename string
	// Hash is the SHA-256 of the content, zero while it still arrives.
	Hash storage.BlobHash
	// Size is in bytes, -1 while it is not known.
	Size int64
	// Created is when the file came to this server.
	Created time.Time
}

// ServeHTTP answers a GET or HEAD request with the file, and leaves it open. It sets every header that the spec asks for.
func (f *File) ServeHTTP(w http.ResponseWriter, r *http.Request) {}

// ContentDisposition is the header for this file: inline for the types that are safe to be shown, else attachment.
// Spec v1.19 client-server-api/#serving-inline-content
func (f *File) ContentDisposition() string { return "" }
