package api

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"parley.im/parley/server/audio"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/voice"
)

// voiceRoutes are what Parley adds for voice messages. docs/voice.md
func (a *api) voiceRoutes() []route {
	prefix, file := "/_matrix/client/unstable/im.parley.voice", "/{serverName}/{mediaId}"
	played, transcript := prefix+"/rooms/{roomId}/played", prefix+"/rooms/{roomId}/transcript/{eventId}"
	all := []route{
		{method: post, path: prefix + "/link" + file, handle: a.linkRecording, limit: limitMedia, suspended: true},
		{method: get, path: played, handle: a.played, suspended: true},
		{method: put, path: played + "/{eventId}", handle: a.setPlayed, limit: limitAccount, suspended: true},
		{method: get, path: played + "_by", handle: a.playedBy, suspended: true},
		{method: get, path: transcript, handle: a.transcript, suspended: true},
		{method: put, path: transcript, handle: a.correctTranscript, limit: limitAccount, suspended: true},
		{method: get, path: prefix + "/inbox", handle: a.voiceInbox, suspended: true},
	}
	live := prefix + "/live" + file
	all = append(all,
		route{method: put, path: live, handle: a.appendLive, limit: limitLive},
		route{method: del, path: live, handle: a.cancelLive, limit: limitLive, suspended: true})
	for _, method := range []string{get, head} {
		all = append(all,
			route{method: method, path: prefix + "/media" + file, handle: a.downloadRecording, suspended: true},
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

// appendLive takes a part of a recording as it is made. The body may come as slowly as somebody speaks.
func (a *api) appendLive(c *call) error {
	uri, err := media.NewURI(c.Param("serverName"), c.Param("mediaId"))
	if err != nil {
		return err
	}
	offset, err := c.number("offset", -1)
	if err != nil {
		return err
	}
	if offset < 0 {
		return matrix.MissingParam("offset is missing: where in the recording the body begins")
	}
	end, err := c.boolean("end")
	if err != nil {
		return err
	}
	answer, err := a.Voice.AppendLive(c.ctx(), c.userID(), uri, voice.Piece{
		Offset: offset, ContentType: c.Request.Header.Get("Content-Type"), End: end,
		Body: arriving{c.Request.Body, http.NewResponseController(c.Writer), a.Voice.Config.Live.Idle},
	})
	return c.answer(answer, err)
}

// cancelLive takes a recording back that is being made.
func (a *api) cancelLive(c *call) error {
	uri, err := media.NewURI(c.Param("serverName"), c.Param("mediaId"))
	if err != nil {
		return err
	}
	if err := a.Voice.CancelLive(c.ctx(), c.userID(), uri); err != nil {
		return err
	}
	return c.done()
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

// played tells how far the asker is with the voice messages of a room.
func (a *api) played(c *call) error {
	room, err := c.roomID()
	if err != nil {
		return err
	}
	events, err := a.Voice.Played(c.ctx(), c.userID(), room)
	if err != nil {
		return err
	}
	return c.reply(map[string]any{"events": events})
}

// playedBy tells who has played what the asker sent to a room.
func (a *api) playedBy(c *call) error {
	room, err := c.roomID()
	if err != nil {
		return err
	}
	receipts, err := a.Voice.PlayedBy(c.ctx(), c.userID(), room)
	if err != nil {
		return err
	}
	ignored, err := a.Users.Ignored(c.ctx(), c.userID())
	if err != nil {
		return err
	}
	events := map[matrix.EventID]map[matrix.UserID]any{}
	for _, r := range receipts {
		if ignored[r.User] {
			continue
		}
		if events[r.Event] == nil {
			events[r.Event] = map[matrix.UserID]any{}
		}
		events[r.Event][r.User] = map[string]int64{"ts": r.TS}
	}
	return c.reply(map[string]any{"events": events})
}

// setPlayed stores how far the asker is with one voice message, which must be one that they may see.
func (a *api) setPlayed(c *call) error {
	room, err := c.roomID()
	if err != nil {
		return err
	}
	id, err := c.eventID()
	if err != nil {
		return err
	}
	var change voice.PlayedChange
	if err := c.decode(&change); err != nil {
		return err
	}
	event, err := a.Rooms.Event(c.ctx(), room, c.reader(), id)
	if err != nil {
		return err
	}
	if err := a.Voice.SetPlayed(c.ctx(), c.userID(), room, id, event, change); err != nil {
		return err
	}
	return c.done()
}

// voiceInbox lists the voice messages that the asker has not played yet, over all rooms, oldest first.
func (a *api) voiceInbox(c *call) error {
	limit, err := c.limit(50, 200)
	if err != nil {
		return err
	}
	after, err := c.number("from", 0)
	if err != nil {
		return err
	}
	events, total, err := a.Voice.Inbox(c.ctx(), c.userID(), after, limit)
	if err != nil {
		return err
	}
	answer := []byte(`{"total":`)
	answer = strconv.AppendInt(answer, int64(total), 10)
	answer = append(answer, `,"events":[`...)
	for i, e := range events {
		if i > 0 {
			answer = append(answer, ',')
		}
		if answer, err = a.Rooms.AppendClient(c.ctx(), answer, e, c.reader()); err != nil {
			return err
		}
	}
	answer = append(answer, ']')
	if len(events) == limit {
		answer = append(answer, `,"end":"`...)
		answer = strconv.AppendInt(answer, events[len(events)-1].Pos, 10)
		answer = append(answer, '"')
	}
	return c.replyJSON(append(answer, '}'))
}

// heard is an event that the asker may see.
func (c *call) heard(a *api) (matrix.EventID, error) {
	room, err := c.roomID()
	if err != nil {
		return "", err
	}
	id, err := c.eventID()
	if err != nil {
		return "", err
	}
	_, err = a.Rooms.VisibleEvent(c.ctx(), room, c.userID(), id)
	return id, err
}

// maxTranscriptWait is how long a request may wait for a transcript.
const maxTranscriptWait = 60_000 // ms

// transcript tells what is said in a voice message, and waits for it if asked to.
func (a *api) transcript(c *call) error {
	id, err := c.heard(a)
	if err != nil {
		return err
	}
	wait, err := c.number("timeout", 0)
	if err != nil {
		return err
	}
	t, pending, err := a.Voice.Transcript(c.ctx(), id, time.Duration(min(max(wait, 0), maxTranscriptWait))*time.Millisecond)
	if err != nil {
		return err
	}
	if pending {
		return c.reply(map[string]any{"pending": true})
	}
	return c.reply(t)
}

// correctTranscript stores what the sender says is said.
func (a *api) correctTranscript(c *call) error {
	var body struct {
		Text     *string `json:"text"`
		Language string  `json:"language"`
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Text == nil {
		return matrix.MissingParam("text is missing")
	}
	id, err := c.heard(a)
	if err != nil {
		return err
	}
	if err := a.Voice.CorrectTranscript(c.ctx(), c.userID(), id, *body.Text, body.Language); err != nil {
		return err
	}
	return c.done()
}
