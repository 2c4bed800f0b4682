package federation

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
)

// Spec v1.19 server-server-api/#get_matrixfederationv1mediadownloadmediaid
func (c *call) download() (any, error) {
	request, err := c.mediaRequest()
	if err != nil {
		return nil, err
	}
	ctx, timer, stop := c.longCtx()
	defer stop()
	file, err := c.h.Media.Open(ctx, request)
	if err != nil {
		return nil, err
	}
	if file.Live {
		timer.Stop() // it takes as long as somebody speaks; who takes nothing of it is given up by Follow
		return nil, c.sendLive(file)
	}
	return nil, c.sendFile(file)
}

// Spec v1.19 server-server-api/#get_matrixfederationv1mediathumbnailmediaid
func (c *call) thumbnail() (any, error) {
	request, err := c.mediaRequest()
	if err != nil {
		return nil, err
	}
	size, err := media.ParseThumbnailSize(c.Request.URL.Query())
	if err != nil {
		return nil, err
	}
	file, err := c.h.Media.Thumbnail(c.ctx(), request, size)
	if err != nil {
		return nil, err
	}
	return nil, c.sendFile(file)
}

func (c *call) mediaRequest() (media.Request, error) {
	id, err := c.param("mediaID")
	if err != nil {
		return media.Request{}, err
	}
	wait, err := c.number("timeout_ms", media.DefaultWait.Milliseconds())
	if err != nil {
		return media.Request{}, err
	}
	if wait < 0 || wait > time.Hour.Milliseconds() {
		return media.Request{}, matrix.InvalidParam("timeout_ms is out of range")
	}
	return media.Request{URI: media.URI{Server: c.h.server, MediaID: id}, Wait: time.Duration(wait) * time.Millisecond, LocalOnly: true}, nil
}

// sendFile answers with multipart/mixed: an empty JSON object, then the file; and signs it, with the file read twice:
// once for the Digest, which stands in the headers, once to be sent.
func (c *call) sendFile(file *media.File) error {
	defer file.Close()
	boundary := rand.Text()
	head := partsHead(boundary, headerValue(file.ContentType), file.ContentDisposition())
	tail := "\r\n--" + boundary + "--\r\n"

	sum := sha256.New()
	io.WriteString(sum, head)
	size, err := io.Copy(sum, file)
	if err != nil {
		return fmt.Errorf("read media: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read media: %w", err)
	}
	io.WriteString(sum, tail)
	if err := signResponse(c.Writer, c.Request.Header, digestHeaderOf(sum.Sum(nil)), c.h.server, c.h.Client.o.Key); err != nil {
		return err
	}
	c.Header("Content-Type", "multipart/mixed; boundary="+boundary)
	c.Header("Content-Length", strconv.FormatInt(int64(len(head))+size+int64(len(tail)), 10))
	c.Status(http.StatusOK)
	_, err = io.Copy(c.Writer, io.MultiReader(strings.NewReader(head), io.LimitReader(file, size), strings.NewReader(tail)))
	return err
}

// partsHead is what stands before the file: the first part and the headers of the second.
func partsHead(boundary, contentType, disposition string) string {
	var head strings.Builder
	fmt.Fprintf(&head, "--%s\r\nContent-Type: application/json\r\n\r\n{}\r\n--%s\r\nContent-Type: %s\r\n", boundary, boundary, contentType)
	if disposition != "" {
		fmt.Fprintf(&head, "Content-Disposition: %s\r\n", headerValue(disposition))
	}
	return head.String() + "\r\n"
}

// headerValue keeps a value that somebody else chose from ending its header.
func headerValue(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return -1
		}
		return r
	}, s)
}
