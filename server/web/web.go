// Package web is the embedded web client: a Matrix client made for voice, on the public client-server API and nothing else.
//
// Its sources are in client/, written in TypeScript; dist/ holds what `npm ci && npm run build` makes of them there, and is
// embedded, so that building the server needs no Node. The gate builds it anew and compares.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"
)

//go:embed all:dist
var files embed.FS

// policy lets the page run its own scripts (and the WebAssembly of the encryption), talk to its own server, and nothing else.
const policy = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; " +
	"media-src 'self' blob:; connect-src 'self'; font-src 'self'; worker-src 'self' blob:; manifest-src 'self'; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// file is one embedded file. Nothing of it is read before somebody asks for it, so that it takes no memory of an idle server.
type file struct {
	name       string
	size       int64
	tag        func() (string, error)
	immutable  bool                   // its name changes with its content
	compressed func() ([]byte, error) // by gzip; nil if that would not make it smaller
}

// Handler serves the web client at /. Whatever is not a file of it is answered by next.
func Handler(next http.Handler) (http.Handler, error) {
	all, err := load()
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/")
		if name == "" {
			name = "index.html"
		}
		f, ok := all[name]
		if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		if err := f.serve(w, r); err != nil {
			http.Error(w, "the file cannot be read", http.StatusInternalServerError)
		}
	}), nil
}

func load() (map[string]*file, error) {
	all := map[string]*file{}
	dist, err := fs.Sub(files, "dist")
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(dist, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		f := &file{name: "dist/" + name, size: info.Size(), immutable: strings.HasPrefix(name, "assets/")}
		f.tag = sync.OnceValues(f.hash)
		f.compressed = sync.OnceValues(f.compress)
		all[name] = f
		return nil
	})
	if err == nil && all["index.html"] == nil {
		err = fmt.Errorf("the web client is not built: run npm ci && npm run build in server/web/client")
	}
	return all, err
}

// contentType does not ask the machine's tables, which differ.
func contentType(name string) string {
	switch path.Ext(name) {
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".webmanifest":
		return "application/manifest+json"
	case ".wasm":
		return "application/wasm"
	case ".html":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	if t := mime.TypeByExtension(path.Ext(name)); t != "" {
		return t
	}
	return "application/octet-stream"
}

// open gives the content. The files of an embed.FS can be read at any place.
func (f *file) open() (io.ReadSeekCloser, error) {
	opened, err := files.Open(f.name)
	if err != nil {
		return nil, err
	}
	return opened.(io.ReadSeekCloser), nil
}

func (f *file) hash() (string, error) {
	content, err := f.open()
	if err != nil {
		return "", err
	}
	defer content.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, content); err != nil {
		return "", err
	}
	return `"` + base64.RawURLEncoding.EncodeToString(hash.Sum(nil)[:12]) + `"`, nil
}

func (f *file) compress() ([]byte, error) {
	content, err := f.open()
	if err != nil {
		return nil, err
	}
	defer content.Close()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(w, content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil || int64(b.Len()) > f.size*9/10 {
		return nil, err
	}
	return bytes.Clone(b.Bytes()), nil
}

func (f *file) serve(w http.ResponseWriter, r *http.Request) error {
	tag, err := f.tag()
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", contentType(f.name))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Permissions-Policy", "microphone=(self), camera=(self), geolocation=()")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Vary", "Accept-Encoding")
	h.Set("Cache-Control", "no-cache")
	if f.immutable {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && r.Header.Get("Range") == "" {
		small, err := f.compressed()
		if err != nil {
			return err
		}
		if small != nil {
			h.Set("Content-Encoding", "gzip")
			h.Set("ETag", strings.TrimSuffix(tag, `"`)+`-gzip"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(small))
			return nil
		}
	}
	content, err := f.open()
	if err != nil {
		return err
	}
	defer content.Close()
	h.Set("ETag", tag)
	http.ServeContent(w, r, "", time.Time{}, content)
	return nil
}
