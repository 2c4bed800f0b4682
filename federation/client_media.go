package federation

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
)

const (
	maxMediaMetadata = 64 << 10
	// maxMediaTail is what may follow the file in an answer: the closing boundary.
	maxMediaTail = 4 << 10
)

// DownloadMedia: see media.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1mediadownloadmediaid
func (c *Client) DownloadMedia(ctx context.Context, server matrix.ServerName, mediaID string, wait time.Duration) (*media.RemoteFile, error) {
	return c.fetchMedia(ctx, server, "download", mediaID, url.Values{}, wait)
}

// ThumbnailMedia: see media.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1mediathumbnailmediaid
func (c *Client) ThumbnailMedia(ctx context.Context, server matrix.ServerName, mediaID string, size media.ThumbnailSize, wait time.Duration) (*media.RemoteFile, error) {
	query := url.Values{"width": {strconv.Itoa(size.Width)}, "height": {strconv.Itoa(size.Height)}, "method": {"scale"}}
	if size.Crop {
		query.Set("method", "crop")
	}
	return c.fetchMedia(ctx, server, "thumbnail", mediaID, query, wait)
}

func (c *Client) fetchMedia(ctx context.Context, server matrix.ServerName, kind, mediaID string, query url.Values, wait time.Duration) (*media.RemoteFile, error) {
	if wait > 0 {
		query.Set("timeout_ms", strconv.FormatInt(wait.Milliseconds(), 10))
	}
	q := request{server: server, method: http.MethodGet, path: escape(v1+"/media/"+kind, mediaID) + "?" + query.Encode(), urgent: true}
	file, err := c.openMedia(ctx, q, wait, c.multipartFile)
	if noSuchEndpoint(err) {
		// An old server. Spec v1.19 server-server-api/#content-repository
		query.Set("allow_remote", "false")
		q.path = escape("/_matrix/media/v3/"+kind, string(server), mediaID) + "?" + query.Encode()
		return c.openMedia(ctx, q, wait, c.plainFile)
	}
	return file, err
}

// noSuchEndpoint reports whether the error is that of a server that does not know an endpoint, or of something before it.
func noSuchEndpoint(err error) bool {
	var refused *matrix.Error
	var status statusError
	return errors.As(err, &refused) && refused.Code == "M_UNRECOGNIZED" ||
		errors.As(err, &status) && (status == http.StatusBadRequest || status == http.StatusNotFound || status == http.StatusMethodNotAllowed)
}

// openMedia bounds the wait for the answer's headers, not for the file: ctx and the reader's limits do that.
func (c *Client) openMedia(ctx context.Context, q request, wait time.Duration, read func(context.Context, request, *http.Response, *digestReader) (*media.RemoteFile, error)) (*media.RemoteFile, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.o.Config.RequestTimeout+wait, func() { cancel(context.DeadlineExceeded) })
	answer, sent, err := c.open(ctx, q)
	if !timer.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		if answer != nil {
			answer.Body.Close()
		}
		cancel(nil)
		return nil, err
	}
	body := &digestReader{r: answer.Body, close: func() error { defer cancel(nil); return answer.Body.Close() }}
	body.live = answer.Header.Get(liveHeader) != "" && answer.Header.Get("Signature") == ""
	if !body.live {
		body.want, err = c.checkAnswer(ctx, q.server, answer, sent)
	}
	if body.sent = sent; err == nil {
		if body.want != "" {
			body.hash = sha256.New()
		}
		var file *media.RemoteFile
		if file, err = read(ctx, q, answer, body); err == nil {
			return file, nil
		}
	}
	body.close()
	return nil, fmt.Errorf("media of %s: %w", q.server, err)
}

// checkAnswer verifies the signature of an answer and returns the Digest that its body must have, or "" if it is not
// signed and need not be.
func (c *Client) checkAnswer(ctx context.Context, server matrix.ServerName, answer *http.Response, sent http.Header) (digest string, err error) {
	sig, err := parseResponseSignature(answer.Header, sent, c.o.Now())
	if errors.Is(err, errUnsigned) {
		if c.mustSign(server) {
			return "", errors.New("the answer is not signed, as this server's must be")
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if sig.Server != server {
		return "", fmt.Errorf("the answer is signed by %s", sig.Server)
	}
	key, err := c.keys.Key(ctx, sig.Server, sig.KeyID, c.o.Now())
	if err != nil {
		return "", err
	}
	if err := sig.verifyResponse(answer.Header, key); err != nil {
		return "", fmt.Errorf("signature of the answer: %w", err)
	}
	return answer.Header.Get("Digest"), c.peers.signed(ctx, server)
}

// mustSign says whether the policy demands a signature of server.
func (c *Client) mustSign(server matrix.ServerName) bool {
	switch c.o.Config.policy(server) {
	case policyRequired:
		return true
	case policyOnFirstUse:
		return c.peers.signs(server)
	}
	return false
}

// multipartFile reads a multipart/mixed answer: a part with JSON, as yet always empty, and the file or where it is.
func (c *Client) multipartFile(ctx context.Context, q request, answer *http.Response, body *digestReader) (*media.RemoteFile, error) {
	mediaType, params, err := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if err != nil || mediaType != "multipart/mixed" || params["boundary"] == "" {
		return nil, errors.New("the answer is not multipart/mixed")
	}
	parts := multipart.NewReader(bufio.NewReaderSize(body, 32<<10), params["boundary"])
	if _, err := parts.NextRawPart(); err != nil {
		return nil, fmt.Errorf("first part: %w", err)
	}
	// NextRawPart reads over the rest of the first part; the limit is on what it can be made to read over.
	body.limit = maxMediaMetadata
	file, err := parts.NextRawPart()
	if err != nil {
		return nil, fmt.Errorf("second part: %w", err)
	}
	body.limit = 0
	if body.live {
		return &media.RemoteFile{
			Body: &liveReader{ctx: ctx, client: c, server: q.server, sent: body.sent, parts: parts, part: file, whole: body, sum: counter{w: sha256.New()}},
			Live: true, ContentType: file.Header.Get("Content-Type"), ContentDisposition: file.Header.Get("Content-Disposition"),
		}, nil
	}
	if location := file.Header.Get("Location"); location != "" {
		if body.want != "" {
			return nil, errors.New("a server that signs redirects to what it has not signed")
		}
		return c.redirectedFile(ctx, location, body)
	}
	return &media.RemoteFile{
		Body:               &partReader{file, body},
		ContentType:        file.Header.Get("Content-Type"),
		ContentDisposition: file.Header.Get("Content-Disposition"),
	}, nil
}

// redirectedFile opens a file that a server keeps elsewhere: without authentication, guarded like everything else. first is
// the answer that redirects; its end would end ctx.
func (c *Client) redirectedFile(ctx context.Context, location string, first *digestReader) (*media.RemoteFile, error) {
	if !strings.HasPrefix(location, "https://") {
		return nil, errors.New("redirect to what is not https")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, err
	}
	answer, err := c.fetch.Do(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("status %d", answer.StatusCode)
	}
	body := &digestReader{r: answer.Body, close: func() error { return errors.Join(answer.Body.Close(), first.close()) }}
	return &media.RemoteFile{
		Body:               &partReader{body, body},
		ContentType:        answer.Header.Get("Content-Type"),
		ContentDisposition: answer.Header.Get("Content-Disposition"),
	}, nil
}

func (c *Client) plainFile(_ context.Context, _ request, answer *http.Response, body *digestReader) (*media.RemoteFile, error) {
	if body.live {
		return nil, errors.New("a live recording where there can be none")
	}
	return &media.RemoteFile{
		Body:               &partReader{body, body},
		ContentType:        answer.Header.Get("Content-Type"),
		ContentDisposition: answer.Header.Get("Content-Disposition"),
	}, nil
}

// digestReader hashes all that is read of an answer, if a Digest is expected.
type digestReader struct {
	r     io.Reader
	close func() error
	hash  hash.Hash // nil: nothing is expected
	want  string
	limit int64 // of what may be read before it is set back to 0; 0 for none
	live  bool  // the file is being recorded: its proof comes last
	sent  http.Header
}

func (d *digestReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if d.hash != nil {
		d.hash.Write(p[:n])
	}
	if d.limit != 0 {
		if d.limit -= int64(n); d.limit <= 0 {
			return 0, errors.New("the first part is too long")
		}
	}
	return n, err
}

// partReader is the file within an answer. At its end the rest of the answer is read and the whole compared with the
// Digest: an answer that was tampered with ends with an error instead of io.EOF.
type partReader struct {
	io.Reader
	whole *digestReader
}

func (p *partReader) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if err != io.EOF || p.whole.hash == nil {
		return n, err
	}
	tail, err := io.Copy(io.Discard, io.LimitReader(p.whole, maxMediaTail))
	if err == nil && tail == maxMediaTail {
		err = errors.New("more follows the file than its closing boundary")
	}
	if err == nil {
		if err = checkDigest(http.Header{"Digest": {p.whole.want}}, p.whole.hash.Sum(nil)); err == nil {
			p.whole.hash = nil
			err = io.EOF
		}
	}
	return n, err
}

func (p *partReader) Close() error { return p.whole.close() }
