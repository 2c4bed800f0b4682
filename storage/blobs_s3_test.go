package storage

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeBucket answers the few requests of S3 that are made here. It checks no signature.
type fakeBucket struct {
	mu      sync.Mutex
	objects map[string][]byte
}

func (f *fakeBucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key, ok := strings.CutPrefix(r.URL.Path, "/media/")
	switch {
	case r.URL.Path != "/media/" && !ok:
		s3Refuse(w, "NoSuchBucket")
	case key == "" && r.Method == http.MethodHead:
	case r.URL.Query().Has("location"):
		io.WriteString(w, `<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></LocationConstraint>`)
	case key == "":
		f.list(w, r.URL.Query().Get("prefix"))
	case r.Method == http.MethodPut:
		content, err := s3Body(r)
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		f.objects[key] = content
		w.Header().Set("ETag", `"x"`)
	case r.Method == http.MethodDelete:
		delete(f.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case f.objects[key] == nil:
		s3Refuse(w, "NoSuchKey")
	default:
		w.Header().Set("ETag", `"x"`)
		http.ServeContent(w, r, "", time.Now(), bytes.NewReader(f.objects[key]))
	}
}

func s3Refuse(w http.ResponseWriter, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, "<Error><Code>%s</Code></Error>", code)
}

func (f *fakeBucket) list(w http.ResponseWriter, prefix string) {
	type entry struct {
		Key          string
		Size         int
		LastModified time.Time
	}
	result := struct {
		XMLName  xml.Name `xml:"ListBucketResult"`
		Contents []entry
	}{}
	for key, content := range f.objects {
		if strings.HasPrefix(key, prefix) {
			result.Contents = append(result.Contents, entry{key, len(content), time.Now()})
		}
	}
	xml.NewEncoder(w).Encode(result)
}

// s3Body reads a body that may be sent in signed chunks.
func s3Body(r *http.Request) ([]byte, error) {
	if !strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return io.ReadAll(r.Body)
	}
	var content []byte
	lines := bufio.NewReader(r.Body)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil, err
		}
		length, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		n, err := strconv.ParseInt(length, 16, 32)
		if err != nil || n == 0 {
			return content, err
		}
		chunk := make([]byte, n+2)
		if _, err := io.ReadFull(lines, chunk); err != nil {
			return nil, err
		}
		content = append(content, chunk[:n]...)
	}
}

func s3Config(t *testing.T, server *httptest.Server) S3Config {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret-key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return S3Config{
		Endpoint: strings.TrimPrefix(server.URL, "http://"), Bucket: "media", Prefix: "parley/",
		Region: "eu-central-1", AccessKey: "key", SecretKeyFile: secret, Insecure: true,
	}
}

func TestS3BlobsKeepFindAndDelete(t *testing.T) {
	bucket := &fakeBucket{objects: map[string][]byte{"other/file": []byte("x"), "parley/readme": []byte("x")}}
	server := httptest.NewServer(bucket)
	defer server.Close()
	blobs, err := OpenS3Blobs(t.Context(), s3Config(t, server), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	testBlobs(t, blobs)
	putBlob(t, blobs, nil)
	if len(bucket.objects) != 3 {
		t.Errorf("%d objects, want the two foreign ones and an empty blob", len(bucket.objects))
	}
}

func TestS3BlobsNeedTheirBucket(t *testing.T) {
	server := httptest.NewServer(&fakeBucket{})
	defer server.Close()
	cfg := s3Config(t, server)
	cfg.Bucket = "another"
	if _, err := OpenS3Blobs(t.Context(), cfg, t.TempDir(), nil); err == nil {
		t.Error("a bucket that is not there was opened")
	}
	cfg = s3Config(t, server)
	cfg.SecretKeyFile = filepath.Join(t.TempDir(), "none")
	if _, err := OpenS3Blobs(t.Context(), cfg, t.TempDir(), nil); err == nil {
		t.Error("opened without a key")
	}
	cfg = s3Config(t, server)
	cfg.Prefix = "parley"
	if _, err := OpenS3Blobs(t.Context(), cfg, t.TempDir(), nil); err == nil {
		t.Error("a prefix without a slash was accepted")
	}
}
