package federation

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime/multipart"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
)

// A recording that is still being made is passed on as it comes: a Digest of all of it cannot stand in front. To a server that signs its requests the proof
// comes behind the file, as a third part that is signed as JSON is signed everywhere in Matrix. A server that knows nothing of this gets
// the two parts that it expects, without Content-Length.
const (
	// liveHeader tells that the file in an answer is being recorded: that it takes as long as somebody speaks, and that its proof comes last.
	liveHeader = "Parley-Live"
	// liveProofType is what keeps the proof from being taken for anything else that a server signs.
	liveProofType = "im.parley.media.proof"
	// maxLiveTo is how many recordings are passed on to one server at the same time. They do not count as requests that are worked on.
	maxLiveTo = 64
	// maxLiveTail is what may follow the file.
	maxLiveTail = 64 << 10
)

// liveProof is what the serving server says of the file that it has sent.
type liveProof struct {
	Type        string `json:"type"`
	InReplyTo   string `json:"in_reply_to"` // as the header Parley-In-Reply-To
	SHA256      string `json:"sha256"`      // base64
	Size        int64  `json:"size"`
	ContentType string `json:"content_type"`
}

// longCtx is for an answer that may take long: it ends when the other server hangs up, or with stop.
func (c *call) longCtx() (ctx context.Context, timer *time.Timer, stop func()) {
	ctx, cancel := context.WithCancelCause(c.life)
	timer = time.AfterFunc(longestAnswer, func() { cancel(context.DeadlineExceeded) })
	return ctx, timer, func() { timer.Stop(); cancel(nil) }
}

// enterLive makes a request of origin's one that passes on a recording; leaveLive takes that back.
func (h *handler) enterLive(origin matrix.ServerName) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.liveTo[origin] >= maxLiveTo {
		return false
	}
	h.liveTo[origin]++
	h.inFlight[origin]--
	return true
}

func (h *handler) leaveLive(origin matrix.ServerName) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.liveTo[origin]--; h.liveTo[origin] == 0 {
		delete(h.liveTo, origin)
	}
	h.inFlight[origin]++
}

// sendLive answers with a file that is being recorded.
func (c *call) sendLive(file *media.File) error {
	defer file.Close()
	if !c.h.enterLive(c.origin) {
		return matrix.LimitExceeded(time.Second)
	}
	defer c.h.leaveLive(c.origin)
	boundary := rand.Text()
	contentType := headerValue(file.ContentType)
	c.Header("Content-Type", "multipart/mixed; boundary="+boundary)
	c.Header("X-Accel-Buffering", "no")
	signs := c.Request.Header.Get("Signature") != ""
	if signs {
		c.Header(liveHeader, "1")
	}
	c.Status(http.StatusOK)
	if _, err := io.WriteString(c.Writer, partsHead(boundary, contentType, file.ContentDisposition())); err != nil {
		panic(http.ErrAbortHandler)
	}
	sum := sha256.New()
	counted := &counter{w: sum}
	read, write := media.Follow(c.Writer, io.TeeReader(file, counted))
	if read != nil || write != nil {
		if read != nil {
			c.h.log.Debug("live recording broke off", "server", c.origin, "err", read)
		}
		panic(http.ErrAbortHandler) // so that the other side does not take it for complete
	}
	tail := "\r\n--" + boundary
	if signs {
		proof, err := c.liveProof(contentType, sum, counted.n)
		if err != nil {
			return err
		}
		tail += "\r\nContent-Type: application/json\r\n\r\n" + string(proof) + "\r\n--" + boundary
	}
	_, err := io.WriteString(c.Writer, tail+"--\r\n")
	return err
}

func (c *call) liveProof(contentType string, sum hash.Hash, size int64) ([]byte, error) {
	proof, err := encode(liveProof{Type: liveProofType, InReplyTo: requestDigest(c.Request.Header), SHA256: base64.StdEncoding.EncodeToString(sum.Sum(nil)),
		Size: size, ContentType: contentType})
	if err != nil {
		return nil, err
	}
	return matrix.SignJSON(proof, c.h.server, c.h.Client.o.Key)
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// liveReader is a file that is being recorded within an answer. At its end the proof is read: io.EOF comes only if that is right, or missing though nobody
// has to sign.
type liveReader struct {
	ctx    context.Context
	client *Client
	server matrix.ServerName
	sent   http.Header // of the request
	parts  *multipart.Reader
	part   *multipart.Part
	whole  *digestReader
	sum    counter // of the file
	ended  error   // what there is to say at the end, once it has been reached
}

func (l *liveReader) Read(p []byte) (int, error) {
	if l.ended != nil {
		return 0, l.ended
	}
	n, err := l.part.Read(p)
	l.sum.Write(p[:n])
	if err != nil {
		if err == io.EOF {
			if err = l.verify(); err == nil {
				err = io.EOF
			}
		}
		l.ended = err
	}
	return n, err
}

func (l *liveReader) Close() error { return l.whole.close() }

// verify reads what follows the file.
func (l *liveReader) verify() error {
	l.whole.limit = maxLiveTail
	part, err := l.parts.NextRawPart()
	if err == io.EOF {
		if l.client.mustSign(l.server) {
			return errors.New("the recording is not signed, as this server's must be")
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("proof of a recording: %w", err)
	}
	raw, err := readAll(part, maxLiveTail)
	if err == nil {
		err = l.check(raw)
	}
	if err != nil {
		return fmt.Errorf("proof of a recording: %w", err)
	}
	if _, err := l.parts.NextRawPart(); err != io.EOF {
		return errors.New("something follows the proof of a recording")
	}
	return l.client.peers.signed(l.ctx, l.server)
}

func (l *liveReader) check(raw []byte) error {
	var proof liveProof
	if err := json.Unmarshal(raw, &proof); err != nil {
		return err
	}
	want := liveProof{Type: liveProofType, InReplyTo: requestDigest(l.sent), SHA256: base64.StdEncoding.EncodeToString(l.sum.w.(hash.Hash).Sum(nil)),
		Size: l.sum.n, ContentType: l.part.Header.Get("Content-Type")}
	// None of it is secret; compared in constant time it need not be thought about.
	a, errA := encode(proof)
	b, errB := encode(want)
	if errA != nil || errB != nil || subtle.ConstantTimeCompare(a, b) != 1 {
		return errors.New("it is about another file, or another request")
	}
	ids := matrix.SignatureKeyIDs(raw, string(l.server))
	if len(ids) == 0 {
		return errors.New("it is not signed")
	}
	key, err := l.client.keys.Key(l.ctx, l.server, ids[0], l.client.o.Now())
	if err != nil {
		return err
	}
	return matrix.VerifyJSON(raw, string(l.server), ids[0], key)
}
