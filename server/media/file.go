package media

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"parley.im/parley/storage"
)

// A File is an opened file or thumbnail. Its content is complete, or still arriving from another server; ServeHTTP knows
// the difference, and who only reads to the end need not.
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
	// Live says that the content is still being recorded, here or elsewhere: it takes as long as somebody speaks.
	Live bool

	// whole waits for the end of a file that is still arriving; nil for others.
	whole func(context.Context) (storage.Media, error)
}

// inlineTypes are safe to be shown by a browser. Spec v1.19 client-server-api/#serving-inline-content
var inlineTypes = map[string]bool{
	"text/css": true, "text/plain": true, "text/csv": true, "application/json": true, "application/ld+json": true,
	"image/jpeg": true, "image/gif": true, "image/png": true, "image/apng": true, "image/webp": true, "image/avif": true,
	"video/mp4": true, "video/webm": true, "video/ogg": true, "video/quicktime": true,
	"audio/mp4": true, "audio/webm": true, "audio/aac": true, "audio/mpeg": true, "audio/ogg": true, "audio/wave": true,
	"audio/wav": true, "audio/x-wav": true, "audio/x-pn-wav": true, "audio/flac": true, "audio/x-flac": true,
}

// ContentDisposition is the header for this file: inline for the types that are safe to be shown, else attachment.
func (f *File) ContentDisposition() string {
	kind := "attachment"
	base, _, _ := strings.Cut(f.ContentType, ";")
	if inlineTypes[strings.ToLower(strings.TrimSpace(base))] {
		kind = "inline"
	}
	if f.Filename == "" {
		return kind
	}
	return mime.FormatMediaType(kind, map[string]string{"filename": cleanFilename(f.Filename)})
}

// ServeHTTP answers a GET or HEAD request with the file and leaves it open. It sets all headers, and understands Range,
// If-Range and the other conditions; the ETag is the content's SHA-256. A file that is still arriving is passed on as
// it comes, unless the request needs to know its size; one that is being recorded is passed on in any case. If it breaks off then, so does the
// answer: ServeHTTP panics with http.ErrAbortHandler, as the only way to tell the client.
func (f *File) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.ContentType)
	h.Set("Content-Disposition", f.ContentDisposition())
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if f.Live {
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no") // a proxy that gathers the answer would keep it until the end
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusOK)
			return
		}
		f.serveArriving(w)
		return
	}
	// What an ID stands for never changes, but it can be deleted.
	h.Set("Cache-Control", "private, max-age=86400, immutable")
	if f.whole == nil || f.Size >= 0 {
		h.Set("ETag", `"`+f.Hash.String()+`"`)
		http.ServeContent(w, r, "", f.Created, f)
		return
	}
	if r.Method == http.MethodHead || r.Header.Get("Range") != "" {
		f.serveComplete(w, r)
		return
	}
	f.serveArriving(w)
}

// serveComplete waits for the rest of the file.
func (f *File) serveComplete(w http.ResponseWriter, r *http.Request) {
	m, err := f.whole(r.Context())
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	f.Hash, f.Size, f.Created = m.Hash, m.Size, m.Created
	f.ServeHTTP(w, r)
}

func (f *File) serveArriving(w http.ResponseWriter) {
	w.WriteHeader(http.StatusOK)
	if read, _ := Follow(w, f); read != nil { // of a client that is gone nothing is to be told
		panic(http.ErrAbortHandler)
	}
}

// Follow writes a content to an answer that has begun, as it arrives, without waiting for more. It gives up who takes nothing for half a minute. read
// is the error of a content that breaks off, write that of a client that does.
func Follow(w http.ResponseWriter, content io.Reader) (read, write error) {
	answer := http.NewResponseController(w)
	_ = answer.Flush() // what cannot flush is no network connection; nor can it set a deadline
	limited := false
	defer func() {
		if limited {
			_ = answer.SetWriteDeadline(time.Time{})
		}
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := content.Read(buf)
		if n > 0 {
			limited = answer.SetWriteDeadline(time.Now().Add(writeTimeout)) == nil
			if _, err := w.Write(buf[:n]); err != nil {
				return nil, err
			}
			if err := answer.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return nil, err
			}
		}
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}
