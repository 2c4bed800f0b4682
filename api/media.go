package api

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
)

// mediaRoutes are the content repository. Spec v1.19 client-server-api/#content-repository
func (a *api) mediaRoutes() []route {
	authed, legacy := "/_matrix/client/v1/media", "/_matrix/media/v3"
	file, named := "/{serverName}/{mediaId}", "/{serverName}/{mediaId}/{fileName}"
	unstable := func(path string) []string {
		return []string{"/_matrix/client/unstable/org.matrix.msc3916/media" + path}
	}
	all := []route{
		{method: post, path: "/_matrix/media/v1/create", handle: a.createMedia, limit: limitMedia,
			aliases: []string{"/_matrix/media/unstable/fi.mau.msc2246/create"}},
		{method: post, path: legacy + "/upload", handle: a.upload, limit: limitMedia},
		{method: put, path: legacy + "/upload" + file, handle: a.uploadTo, limit: limitMedia},
		{method: get, path: authed + "/config", handle: a.mediaConfig, suspended: true, aliases: unstable("/config")},
		{method: get, path: legacy + "/config", handle: a.mediaConfig, suspended: true},
		{method: get, path: authed + "/preview_url", handle: a.previewURL, limit: limitMedia, suspended: true, aliases: unstable("/preview_url")},
		{method: get, path: legacy + "/preview_url", handle: a.previewURL, limit: limitMedia, suspended: true},
	}
	for _, method := range []string{get, head} {
		all = append(all,
			route{method: method, path: authed + "/download" + file, handle: a.download, suspended: true, aliases: unstable("/download" + file)},
			route{method: method, path: authed + "/download" + named, handle: a.download, suspended: true, aliases: unstable("/download" + named)},
			route{method: method, path: authed + "/thumbnail" + file, handle: a.thumbnail, suspended: true, aliases: unstable("/thumbnail" + file)},
			route{method: method, path: legacy + "/download" + file, handle: a.download, auth: anybody, limit: limitOther},
			route{method: method, path: legacy + "/download" + named, handle: a.download, auth: anybody, limit: limitOther},
			route{method: method, path: legacy + "/thumbnail" + file, handle: a.thumbnail, auth: anybody, limit: limitOther})
	}
	return all
}

func (a *api) mediaConfig(c *call) error {
	return c.reply(map[string]int64{"m.upload.size": a.Media.Config.MaxUploadBytes})
}

func (a *api) createMedia(c *call) error {
	if _, err := c.optionalObject(); err != nil {
		return err
	}
	uri, expires, err := a.Media.Create(c.ctx(), c.userID())
	return c.answer(map[string]any{"content_uri": uri.String(), "unused_expires_at": expires.UnixMilli()}, err)
}

// arriving is the body of an upload. It may take as long as it must, but not without anything coming.
type arriving struct {
	body  io.Reader
	conn  *http.ResponseController
	pause time.Duration
}

func (a arriving) Read(p []byte) (int, error) {
	// What cannot set a deadline is no network connection.
	limited := a.conn.SetReadDeadline(time.Now().Add(a.pause)) == nil
	n, err := a.body.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		if limited {
			a.conn.SetReadDeadline(time.Time{}) // it would break off what is done with the file
		}
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = matrix.NewError(http.StatusRequestTimeout, "M_UNKNOWN", "nothing came of the file for %s", a.pause)
	default:
		err = matrix.BadRequest("the file broke off")
	}
	return n, err
}

// uploaded is the request's body with what its headers and query say of it. The repository limits its size.
func (c *call) uploaded() media.Upload {
	return media.Upload{
		Body:        arriving{c.Request.Body, http.NewResponseController(c.Writer), c.a.patience},
		Size:        c.Request.ContentLength,
		ContentType: c.Request.Header.Get("Content-Type"),
		Filename:    c.Query("filename"),
	}
}

func (a *api) upload(c *call) error {
	uri, err := a.Media.Upload(c.ctx(), c.userID(), c.uploaded())
	return c.answer(map[string]string{"content_uri": uri.String()}, err)
}

func (a *api) uploadTo(c *call) error {
	uri, err := media.NewURI(c.Param("serverName"), c.Param("mediaId"))
	if err != nil {
		return err
	}
	if err := a.Media.UploadTo(c.ctx(), c.userID(), uri, c.uploaded()); err != nil {
		return err
	}
	return c.done()
}

// mediaRequest reads which file is wanted, and how long the client waits for it.
func (c *call) mediaRequest() (media.Request, error) {
	uri, err := media.NewURI(c.Param("serverName"), c.Param("mediaId"))
	if err != nil {
		// A media ID that cannot be is one that does not exist.
		return media.Request{}, matrix.NotFound("there is no such media")
	}
	wait, err := c.number("timeout_ms", media.DefaultWait.Milliseconds())
	if err != nil {
		return media.Request{}, err
	}
	return media.Request{
		URI:             uri,
		Wait:            time.Duration(min(wait, 3_600_000)) * time.Millisecond,
		LocalOnly:       c.Query("allow_remote") == "false",
		Unauthenticated: c.route.auth == anybody,
	}, nil
}

func (a *api) download(c *call) error {
	r, err := c.mediaRequest()
	if err != nil {
		return err
	}
	f, err := a.Media.Open(c.ctx(), r)
	if err != nil {
		return err
	}
	defer f.Close()
	if name := c.Param("fileName"); name != "" {
		f.Filename = name
	}
	f.ServeHTTP(c.Writer, c.Request)
	return nil
}

func (a *api) thumbnail(c *call) error {
	r, err := c.mediaRequest()
	if err != nil {
		return err
	}
	size, err := media.ParseThumbnailSize(c.Request.URL.Query())
	if err != nil {
		return err
	}
	f, err := a.Media.Thumbnail(c.ctx(), r, size)
	if err != nil {
		return err
	}
	defer f.Close()
	f.ServeHTTP(c.Writer, c.Request)
	return nil
}

func (a *api) previewURL(c *call) error {
	url := c.Query("url")
	if url == "" {
		return matrix.MissingParam("url is missing")
	}
	var at time.Time
	if ts := c.Query("ts"); ts != "" {
		ms, err := strconv.ParseInt(ts, 10, 64)
		if err != nil {
			return matrix.InvalidParam("ts must be a whole number of milliseconds")
		}
		at = time.UnixMilli(ms)
	}
	return c.replyRaw(a.Media.Preview(c.ctx(), c.userID(), url, at))
}
