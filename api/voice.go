package api

import (
	"net/url"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
)

// voiceRoutes are what Parley adds for voice messages. docs/voice.md
func (a *api) voiceRoutes() []route {
	voice, file := "/_matrix/client/unstable/im.parley.voice", "/{serverName}/{mediaId}"
	all := []route{{method: post, path: voice + "/link" + file, handle: a.linkRecording, limit: limitMedia, suspended: true}}
	for _, method := range []string{get, head} {
		all = append(all,
			route{method: method, path: voice + "/media" + file, handle: a.downloadRecording, suspended: true},
			route{method: method, path: "/_parley/media" + file, handle: a.openLink, auth: anybody, limit: limitOther})
	}
	return all
}

// container reads which container a recording is wanted in; empty is the one it has.
func (c *call) container() (audio.Container, error) {
	switch wanted := audio.Container(c.Query("container")); wanted {
	case "", audio.Ogg, audio.WebM, audio.MP4:
		return wanted, nil
	}
	return "", matrix.InvalidParam("container must be ogg, webm or mp4")
}

// downloadRecording is the download of a file, in the container that the client can play.
func (a *api) downloadRecording(c *call) error {
	r, err := c.mediaRequest()
	if err != nil {
		return err
	}
	if r.Container, err = c.container(); err != nil {
		return err
	}
	return c.serveFile(a.Media.Open(c.ctx(), r))
}

func (c *call) serveFile(f *media.File, err error) error {
	if err != nil {
		return err
	}
	defer f.Close()
	f.ServeHTTP(c.Writer, c.Request)
	return nil
}

// linkRecording makes a link to a file that needs no access token.
func (a *api) linkRecording(c *call) error {
	if _, err := c.optionalObject(); err != nil {
		return err
	}
	r, err := c.mediaRequest()
	if err != nil {
		return err
	}
	container, err := c.container()
	if err != nil {
		return err
	}
	query, expires, err := a.Media.Link(c.ctx(), r.URI, container)
	if err != nil {
		return err
	}
	path := "/_parley/media/" + url.PathEscape(string(r.URI.Server)) + "/" + r.URI.MediaID + "?" + query.Encode()
	return c.reply(map[string]any{"path": path, "expires_at": expires.UnixMilli()})
}

func (a *api) openLink(c *call) error {
	uri, err := media.NewURI(c.Param("serverName"), c.Param("mediaId"))
	if err != nil {
		return matrix.NotFound("there is no such media")
	}
	return c.serveFile(a.Media.OpenLink(c.ctx(), uri, c.Request.URL.Query()))
}
