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

// file is one embedded file, ready to be served.
type file struct {
	content     []byte
	contentType string
	etag        string
	immutable   bool                  // its name changes with its content
	compressed  func() ([]byte, bool) // by gzip, made when first asked for; false if that would not make it smaller
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
		f.serve(w, r)
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
		content, err := fs.ReadFile(dist, name)
		if err != nil {
			return err
		}
		hash := sha256.Sum256(content)
		f := &file{
			content:     content,
			contentType: contentType(name),
			etag:        `"` + base64.RawURLEncoding.EncodeToString(hash[:12]) + `"`,
			immutable:   strings.HasPrefix(name, "assets/"),
		}
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

func (f *file) compress() ([]byte, bool) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, false
	}
	if _, err := w.Write(f.content); err != nil {
		return nil, false
	}
	if err := w.Close(); err != nil {
		return nil, false
	}
	return b.Bytes(), b.Len() < len(f.content)*9/10
}

func (f *file) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.contentType)
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
	content, etag := f.content, f.etag
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && r.Header.Get("Range") == "" {
		if small, ok := f.compressed(); ok {
			content, etag = small, strings.TrimSuffix(f.etag, `"`)+`-gzip"`
			h.Set("Content-Encoding", "gzip")
		}
	}
	h.Set("ETag", etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}
