package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// benchServer is a Matrix server under load.
type benchServer struct {
	url    string
	secret string
	pid    int
	dir    string
	http   *http.Client
}

// benchUser is one signed-in user.
type benchUser struct {
	*benchServer
	ID    string `json:"user_id"`
	Token string `json:"access_token"`
	txn   int
}

func newBenchServer(base, secret string, pid int, dir string) *benchServer {
	return &benchServer{url: strings.TrimSuffix(base, "/"), secret: secret, pid: pid, dir: dir, http: &http.Client{
		Timeout:   2 * time.Minute,
		Transport: &http.Transport{MaxIdleConns: 4096, MaxIdleConnsPerHost: 4096},
	}}
}

// call makes one request; body and answer are JSON unless they are []byte and *[]byte.
func (s *benchServer) call(ctx context.Context, token, method, path string, body, answer any) error {
	var reader io.Reader
	contentType := "application/json"
	switch body := body.(type) {
	case nil:
	case []byte:
		reader, contentType = bytes.NewReader(body), "audio/ogg"
	default:
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, reader)
	if err != nil {
		return err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if reader != nil {
		r.Header.Set("Content-Type", contentType)
	}
	response, err := s.http.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		// Only the error's code and sentence: the rest could carry a token.
		var problem struct{ Errcode, Error string }
		_ = json.Unmarshal(text, &problem)
		return fmt.Errorf("%s %s: %s %s %s", method, r.URL.Path, response.Status, problem.Errcode, problem.Error)
	}
	switch answer := answer.(type) {
	case nil:
		return nil
	case *[]byte:
		*answer = text
		return nil
	default:
		return json.Unmarshal(text, answer)
	}
}

// register makes a user, with the shared secret as Synapse has it, or where registration is open.
func (s *benchServer) register(ctx context.Context, name string) (*benchUser, error) {
	const password = "correct horse battery staple"
	u := &benchUser{benchServer: s}
	if s.secret == "" {
		body := map[string]any{"username": name, "password": password, "auth": map[string]any{"type": "m.login.dummy"}}
		return u, s.call(ctx, "", "POST", "/_matrix/client/v3/register", body, u)
	}
	var nonce struct{ Nonce string }
	if err := s.call(ctx, "", "GET", "/_synapse/admin/v1/register", nil, &nonce); err != nil {
		return nil, err
	}
	mac := hmac.New(sha1.New, []byte(s.secret))
	mac.Write([]byte(strings.Join([]string{nonce.Nonce, name, password, "notadmin"}, "\x00")))
	body := map[string]any{"nonce": nonce.Nonce, "username": name, "password": password, "admin": false, "mac": hex.EncodeToString(mac.Sum(nil))}
	return u, s.call(ctx, "", "POST", "/_synapse/admin/v1/register", body, u)
}

func (u *benchUser) do(ctx context.Context, method, path string, body, answer any) error {
	return u.call(ctx, u.Token, method, "/_matrix/client/v3"+path, body, answer)
}

func (u *benchUser) createRoom(ctx context.Context, preset string) (string, error) {
	var answer struct {
		RoomID string `json:"room_id"`
	}
	err := u.do(ctx, "POST", "/createRoom", map[string]any{"preset": preset}, &answer)
	return answer.RoomID, err
}

// join joins a room; via names a server that is in it.
func (u *benchUser) join(ctx context.Context, room, via string) error {
	query := ""
	if via != "" {
		query = "?server_name=" + url.QueryEscape(via) + "&via=" + url.QueryEscape(via)
	}
	return u.do(ctx, "POST", "/join/"+url.PathEscape(room)+query, map[string]any{}, nil)
}

// say sends one text message and returns its event ID.
func (u *benchUser) say(ctx context.Context, room, text string) (string, error) {
	u.txn++
	var answer struct {
		EventID string `json:"event_id"`
	}
	path := "/rooms/" + url.PathEscape(room) + "/send/m.room.message/bench" + strconv.Itoa(u.txn)
	err := u.do(ctx, "PUT", path, map[string]any{"msgtype": "m.text", "body": text}, &answer)
	return answer.EventID, err
}

type benchSync struct {
	NextBatch string `json:"next_batch"`
	Rooms     struct {
		Join map[string]struct {
			Timeline struct {
				Limited bool `json:"limited"`
				Events  []struct {
					EventID string `json:"event_id"`
					Type    string `json:"type"`
					Content struct{ Body string }
				} `json:"events"`
			} `json:"timeline"`
		} `json:"join"`
	} `json:"rooms"`
}

func (u *benchUser) sync(ctx context.Context, since string, timeout time.Duration) (*benchSync, error) {
	query := url.Values{"timeout": {strconv.FormatInt(timeout.Milliseconds(), 10)}}
	if since != "" {
		query.Set("since", since)
		// A reader that is slow for a moment may be more events behind than the 10 of most servers' default.
		query.Set("filter", `{"room":{"timeline":{"limit":100}}}`)
	}
	answer := &benchSync{}
	return answer, u.do(ctx, "GET", "/sync?"+query.Encode(), nil, answer)
}

// reader follows one room through /sync and keeps the bodies of its messages in the order they came.
type reader struct {
	*benchUser
	room  string
	since string
	seen  []string
}

// follow syncs until n more messages are in seen, or ctx ends.
func (r *reader) follow(ctx context.Context, n int, onMessage func(body string)) error {
	for want := len(r.seen) + n; len(r.seen) < want; {
		answer, err := r.sync(ctx, r.since, 30*time.Second)
		if err != nil {
			return err
		}
		r.since = answer.NextBatch
		timeline := answer.Rooms.Join[r.room].Timeline
		if timeline.Limited {
			return fmt.Errorf("%s: the timeline has a gap", r.ID)
		}
		for _, event := range timeline.Events {
			if event.Type != "m.room.message" {
				continue
			}
			r.seen = append(r.seen, event.Content.Body)
			if onMessage != nil {
				onMessage(event.Content.Body)
			}
		}
	}
	return nil
}

// check compares what was seen with what was sent, in that order.
func (r *reader) check(sent []string) error {
	if len(r.seen) != len(sent) {
		return fmt.Errorf("%s saw %d messages of %d", r.ID, len(r.seen), len(sent))
	}
	for i := range sent {
		if r.seen[i] != sent[i] {
			return fmt.Errorf("%s: message %d is %q and should be %q: lost, doubled or out of order", r.ID, i, r.seen[i], sent[i])
		}
	}
	return nil
}
