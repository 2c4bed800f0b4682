package media

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/charset"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	previewLasts        = time.Hour
	maxPreviewURLBytes  = 2048
	maxPreviewKeys      = 50
	maxPreviewTextBytes = 2000 // of one value
	previewUserAgent    = "Parley (link preview; bot)"
)

// Preview is the OpenGraph description of the page at a URL, as JSON; it may be up to an hour old. It is empty for what
// has no description. at is not regarded: the answer is that of now. It is M_NOT_FOUND where previews are turned off,
// M_INVALID_PARAM for what is no web address, and 502 if the page cannot be had.
// Spec v1.19 client-server-api/#get_matrixclientv1mediapreview_url
func (r *Repository) Preview(ctx context.Context, user matrix.UserID, address string, at time.Time) (json.RawMessage, error) {
	if !r.Config.URLPreviews || r.PreviewClient == nil {
		return nil, matrix.NotFound("previews of links are turned off on this server")
	}
	page, err := url.Parse(address)
	if err != nil || len(address) > maxPreviewURLBytes || page.Scheme != "http" && page.Scheme != "https" || page.Host == "" || page.User != nil {
		return nil, matrix.InvalidParam("url must be a web address of at most %d bytes", maxPreviewURLBytes)
	}
	page.Fragment = ""
	key := page.String()
	if kept, err := r.DB.URLPreview(ctx, key, r.Now().Add(-previewLasts)); !errors.Is(err, storage.ErrNotFound) {
		return kept, err
	}
	made := r.making.DoChan("preview "+key, func() (any, error) {
		if err := r.begin(); err != nil {
			return nil, err
		}
		defer r.running.Done()
		return r.makePreview(key)
	})
	select {
	case result := <-made:
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.(json.RawMessage), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *Repository) makePreview(address string) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(r.life, r.Config.URLPreviewTimeout)
	defer cancel()
	content, contentType, final, err := r.get(ctx, address)
	if err != nil {
		return nil, &remoteFailure{matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the page cannot be had"), err}
	}
	preview := map[string]any{}
	switch {
	case contentType == "text/html" || contentType == "application/xhtml+xml":
		for name, value := range openGraph(content) {
			preview[name] = value
		}
		if picture, _ := preview["og:image"].(string); picture != "" {
			delete(preview, "og:image")
			if at, err := final.Parse(picture); err == nil {
				r.addPicture(ctx, preview, at.String())
			}
		}
	case strings.HasPrefix(contentType, "image/"):
		r.keepPicture(ctx, preview, content, contentType)
	}
	body, err := json.Marshal(preview)
	if err != nil {
		return nil, err
	}
	now := r.Now()
	return body, r.DB.KeepURLPreview(ctx, address, body, now, now.Add(-previewLasts))
}

// get reads a page or picture. PreviewClient refuses private addresses, also after redirects.
func (r *Repository) get(ctx context.Context, address string) (content []byte, contentType string, final *url.URL, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, "", nil, err
	}
	request.Header.Set("User-Agent", previewUserAgent)
	request.Header.Set("Accept", "text/html, application/xhtml+xml, image/*;q=0.9")
	response, err := r.PreviewClient.Do(request)
	if err != nil {
		return nil, "", nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, "", nil, fmt.Errorf("answered %d", response.StatusCode)
	}
	contentType, params, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil {
		return nil, "", nil, errors.New("answered without a content type")
	}
	if !strings.HasPrefix(contentType, "image/") && contentType != "text/html" && contentType != "application/xhtml+xml" {
		return nil, contentType, response.Request.URL, nil // nothing to be read from it
	}
	content, err = io.ReadAll(io.LimitReader(response.Body, r.Config.URLPreviewMaxBytes+1))
	if err != nil {
		return nil, "", nil, err
	}
	if int64(len(content)) > r.Config.URLPreviewMaxBytes {
		return nil, "", nil, errors.New("answered with too much")
	}
	if !strings.HasPrefix(contentType, "image/") {
		encoding, _, _ := charset.DetermineEncoding(content, "text/html; charset="+params["charset"])
		if decoded, err := encoding.NewDecoder().Bytes(content); err == nil {
			content = decoded
		}
	}
	return content, contentType, response.Request.URL, nil
}

// addPicture fetches the picture of a page; a page without it is better than no preview.
func (r *Repository) addPicture(ctx context.Context, preview map[string]any, address string) {
	content, contentType, _, err := r.get(ctx, address)
	if err != nil || !strings.HasPrefix(contentType, "image/") {
		return
	}
	r.keepPicture(ctx, preview, content, contentType)
}

// keepPicture stores a picture as a file that nobody has uploaded: it goes when the cache of other servers' media is
// full. Only what can be read as an image is kept.
func (r *Repository) keepPicture(ctx context.Context, preview map[string]any, content []byte, contentType string) {
	size, _, err := image.DecodeConfig(bytes.NewReader(content))
	if err != nil {
		return
	}
	uri := URI{r.Server, newMediaID()}
	if err := r.receive(ctx, "", uri, Upload{Body: bytes.NewReader(content), Size: int64(len(content)), ContentType: contentType}); err != nil {
		r.Log.Debug("picture of a preview not kept", "err", err)
		return
	}
	preview["og:image"] = uri.String()
	preview["og:image:type"] = contentType
	preview["og:image:width"] = size.Width
	preview["og:image:height"] = size.Height
	preview["matrix:image:size"] = len(content)
}

// openGraph reads the og: properties of a page, and its title and description where those are missing.
func openGraph(page []byte) map[string]string {
	found := map[string]string{}
	keep := func(name, value string) {
		value = strings.Join(strings.Fields(strings.ToValidUTF8(value, "")), " ")
		for len(value) > maxPreviewTextBytes {
			value = strings.ToValidUTF8(value[:maxPreviewTextBytes], "")
		}
		if _, ok := found[name]; !ok && value != "" && len(name) <= 100 && len(found) < maxPreviewKeys {
			found[name] = value
		}
	}
	var title, description string
	tokens := html.NewTokenizer(bytes.NewReader(page))
	tokens.SetMaxBuf(1 << 20)
	for {
		switch tokens.Next() {
		case html.ErrorToken: // the end
			keep("og:title", title)
			keep("og:description", description)
			return found
		case html.StartTagToken, html.SelfClosingTagToken:
			token := tokens.Token()
			switch token.Data {
			case "meta":
				name, value := metaOf(token)
				switch {
				case name == "og:image:url" || name == "og:image:secure_url":
					keep("og:image", value)
				case name == "og:image:width" || name == "og:image:height" || name == "og:image:type": // counted, not claimed
				case strings.HasPrefix(name, "og:"):
					keep(name, value)
				case name == "description":
					description = value
				}
			case "title":
				if title == "" && tokens.Next() == html.TextToken {
					title = string(tokens.Text())
				}
			}
		}
	}
}

func metaOf(token html.Token) (name, value string) {
	for _, attribute := range token.Attr {
		switch attribute.Key {
		case "property", "name":
			name = strings.ToLower(attribute.Val)
		case "content":
			value = attribute.Val
		}
	}
	return name, value
}
