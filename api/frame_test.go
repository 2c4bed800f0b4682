package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"parley.im/parley/server/matrix"
)

// frame is an API with routes of the test's own, which need no rooms below.
func frame(t *testing.T, cfg Config, deps Deps, routes ...route) http.Handler {
	t.Helper()
	if deps.Log == nil {
		deps.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	engine, err := newAPI(cfg, deps).engine(routes)
	if err != nil {
		t.Fatal(err)
	}
	return engine
}

func ask(h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func errcode(t testing.TB, w *httptest.ResponseRecorder) string {
	t.Helper()
	var e struct {
		Code    string `json:"errcode"`
		Message string `json:"error"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Fatalf("answer %d is no JSON: %s", w.Code, w.Body)
	}
	if e.Code != "" && e.Message == "" {
		t.Errorf("%s has no message", e.Code)
	}
	return e.Code
}

func TestPathParametersKeepWhatWasEscaped(t *testing.T) {
	echo := route{method: get, path: "/x/{roomId}/{eventType}", auth: anybody, handle: func(c *call) error {
		return c.reply([]string{c.Param("roomId"), c.Param("eventType")})
	}}
	empty := echo
	empty.path = "/x/{roomId}/"
	h := frame(t, DefaultConfig(), Deps{}, echo, empty)
	for path, want := range map[string]string{
		"/x/a/b":                        `["a","b"]`,
		"/x/%23room%3Aexample.org/b":    `["#room:example.org","b"]`,
		"/x/$abc%2Fdef+g/b":             `["$abc/def+g","b"]`,
		"/x/a%2Fb%2Fc/d%20e%2B":         `["a/b/c","d e+"]`,
		"/x/a/":                         `["a",""]`,
		"/x/@%E4%BA%BA:example.org/a+b": `["@人:example.org","a+b"]`,
		"/x/a%252Fb/c":                  `["a%2Fb","c"]`,
	} {
		if w := ask(h, get, path, ""); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: got %d %s, want %s", path, w.Code, w.Body, want)
		}
	}
	for _, path := range []string{"/x/a%00/b", "/x/a%ff/b", "/x/a/b?q=%00", "/x/a/b?q=%ff"} {
		if w := ask(h, get, path, ""); w.Code != 400 || errcode(t, w) != "M_INVALID_PARAM" {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
	}
}

func TestStateWithAndWithoutTrailingSlash(t *testing.T) {
	a := newAPI(DefaultConfig(), Deps{})
	engine, err := a.engine(a.routes())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/_matrix/client/v3/rooms/!a:b/state/m.room.name", "/_matrix/client/v3/rooms/!a:b/state/m.room.name/",
		"/_matrix/client/r0/rooms/!a:b/state/m.room.name/", "/_matrix/client/v3/pushrules/", "/_matrix/client/v3/pushrules",
		"/_matrix/client/r0/pushrules/global/", "/_matrix/client/r0/sync", "/_matrix/media/r0/config",
	} {
		if w := ask(engine, get, path, ""); errcode(t, w) != "M_MISSING_TOKEN" {
			t.Errorf("%s: got %d %s, want M_MISSING_TOKEN", path, w.Code, w.Body)
		}
	}
}

func TestUnknownEndpointsAndMethods(t *testing.T) {
	known := route{method: get, path: "/_matrix/client/v3/known", auth: anybody, handle: (*call).done}
	h := frame(t, DefaultConfig(), Deps{}, known)
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{get, "/_matrix/unknown", 404},
		{get, "/_matrix/client/v3/unknown", 404},
		{get, "/_matrix/client/v3/known/", 404},
		{get, "/", 404},
		{put, "/_matrix/client/v3/known", 405},
		{"PATCH", "/_matrix/client/v3/known", 405},
	} {
		w := ask(h, c.method, c.path, "")
		if w.Code != c.status || errcode(t, w) != "M_UNRECOGNIZED" {
			t.Errorf("%s %s: got %d %s, want %d M_UNRECOGNIZED", c.method, c.path, w.Code, w.Body, c.status)
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s %s: no CORS headers", c.method, c.path)
		}
	}
}

func TestPreflightIsAnsweredEverywhere(t *testing.T) {
	h := frame(t, DefaultConfig(), Deps{}, route{method: put, path: "/_matrix/client/v3/x", handle: (*call).done})
	for _, path := range []string{"/_matrix/client/v3/x", "/_matrix/client/v3/nowhere"} {
		w := ask(h, http.MethodOptions, path, "")
		if w.Code != 204 || w.Body.Len() != 0 {
			t.Errorf("%s: got %d %q", path, w.Code, w.Body)
		}
		for _, header := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers"} {
			if w.Header().Get(header) == "" {
				t.Errorf("%s: no %s", path, header)
			}
		}
	}
}

func TestErrorsAndPanicsAreAnsweredOnce(t *testing.T) {
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	fails := func(path string, err error) route {
		return route{method: get, path: path, auth: anybody, handle: func(*call) error { return err }}
	}
	h := frame(t, DefaultConfig(), Deps{Log: log},
		fails("/known", matrix.Forbidden("not you")),
		fails("/wrapped", errors.Join(errors.New("outer"), matrix.NotFound("no room"))),
		fails("/ours", errors.New("secret detail of the database")),
		fails("/limited", matrix.LimitExceeded(1500*time.Millisecond)),
		route{method: get, path: "/panic", auth: anybody, handle: func(*call) error { panic("at the disco") }},
		route{method: get, path: "/partial", auth: anybody, handle: func(c *call) error {
			c.Data(200, "text/plain", []byte("half"))
			return errors.New("broke off")
		}})
	for path, want := range map[string]struct {
		status int
		code   string
	}{
		"/known": {403, "M_FORBIDDEN"}, "/wrapped": {404, "M_NOT_FOUND"}, "/ours": {500, "M_UNKNOWN"},
		"/limited": {429, "M_LIMIT_EXCEEDED"}, "/panic": {500, "M_UNKNOWN"},
	} {
		w := ask(h, get, path, "")
		if w.Code != want.status || errcode(t, w) != want.code {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), "secret") || strings.Contains(w.Body.String(), "disco") {
			t.Errorf("%s: the client sees what is inside: %s", path, w.Body)
		}
		if id := w.Header().Get("X-Request-ID"); want.status == 500 && !strings.Contains(logged.String(), id) {
			t.Errorf("%s: request %s is not in the log:\n%s", path, id, &logged)
		}
	}
	w := ask(h, get, "/limited", "")
	if w.Header().Get("Retry-After") != "2" || !strings.Contains(w.Body.String(), `"retry_after_ms":1500`) {
		t.Errorf("limit: got %v %s", w.Header(), w.Body)
	}
	if w := ask(h, get, "/partial", ""); w.Body.String() != "half" {
		t.Errorf("an error was written behind the answer: %s", w.Body)
	}
}

func TestBodiesAreStrictJSON(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxBodyBytes = 100
	typed := route{method: post, path: "/typed", auth: anybody, handle: func(c *call) error {
		var r struct {
			Name  string   `json:"name"`
			Count int      `json:"count"`
			List  []string `json:"list"`
		}
		if err := c.decode(&r); err != nil {
			return err
		}
		return c.reply(r)
	}}
	kept := route{method: post, path: "/kept", auth: anybody, handle: func(c *call) error {
		b, err := c.object()
		return c.replyRaw(b, err)
	}}
	h := frame(t, cfg, Deps{}, typed, kept)
	for _, c := range []struct {
		path, body string
		status     int
		code       string
	}{
		{"/typed", `{"name":"a","count":1,"unknown":{}}`, 200, ""},
		{"/typed", `{}`, 200, ""},
		{"/typed", ``, 400, "M_NOT_JSON"},
		{"/typed", `{`, 400, "M_NOT_JSON"},
		{"/typed", `{"name":"a"} x`, 400, "M_NOT_JSON"},
		{"/typed", `nonsense`, 400, "M_NOT_JSON"},
		{"/typed", `{"name":"a","name":"b"}`, 400, "M_NOT_JSON"},
		{"/typed", "{\"name\":\"a\x81\"}", 400, "M_NOT_JSON"},
		{"/typed", `{"name":"\ud800"}`, 400, "M_NOT_JSON"},
		{"/typed", `{"name":NaN}`, 400, "M_NOT_JSON"},
		{"/typed", `{"name":1}`, 400, "M_BAD_JSON"},
		{"/typed", `{"count":"1"}`, 400, "M_BAD_JSON"},
		{"/typed", `{"count":1.5}`, 400, "M_BAD_JSON"},
		{"/typed", `{"list":"a"}`, 400, "M_BAD_JSON"},
		{"/typed", `{"name":1,`, 400, "M_NOT_JSON"},
		{"/typed", `[]`, 400, "M_BAD_JSON"},
		{"/typed", `null`, 400, "M_BAD_JSON"},
		{"/typed", `"x"`, 400, "M_BAD_JSON"},
		{"/typed", `{"name":"a\u0000b"}`, 400, "M_BAD_JSON"},
		{"/typed", `{"name":"` + strings.Repeat("a", 100) + `"}`, 413, "M_TOO_LARGE"},
		{"/kept", `{"a":{"b":[1,2.5e3,null]}}`, 200, ""},
		{"/kept", `{"a":1,"a":2}`, 400, "M_NOT_JSON"},
		{"/kept", `[1]`, 400, "M_BAD_JSON"},
		{"/kept", ``, 400, "M_NOT_JSON"},
		{"/kept", strings.Repeat(" ", 101) + `{}`, 413, "M_TOO_LARGE"},
	} {
		w := ask(h, post, c.path, c.body)
		if w.Code != c.status || errcode(t, w) != c.code {
			t.Errorf("%s %.40q: got %d %s, want %d %s", c.path, c.body, w.Code, w.Body, c.status, c.code)
		}
	}
	// Without a Content-Length the limit holds as well.
	r := httptest.NewRequest(post, "/kept", io.MultiReader(strings.NewReader(strings.Repeat(" ", 200)), strings.NewReader("{}")))
	r.ContentLength = -1
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 413 {
		t.Errorf("chunked body over the limit: got %d %s", w.Code, w.Body)
	}
}

func TestAnswersWriteEmptyListsAndLeaveOutZeroes(t *testing.T) {
	h := frame(t, DefaultConfig(), Deps{}, route{method: get, path: "/x", auth: anybody, handle: func(c *call) error {
		return c.reply(struct {
			List  []string       `json:"list"`
			Map   map[string]int `json:"map"`
			Zero  int64          `json:"zero,omitempty"`
			False bool           `json:"false,omitempty"`
		}{})
	}})
	if got, want := ask(h, get, "/x", "").Body.String(), `{"list":[],"map":{}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestRateLimits(t *testing.T) {
	now := time.Unix(1000, 0)
	cfg := DefaultConfig()
	cfg.RateLimits.Other = Rate{PerSecond: 0.5, Burst: 2}
	r := route{method: get, path: "/x", auth: anybody, limit: limitOther, handle: (*call).done}
	h := frame(t, cfg, Deps{Now: func() time.Time { return now }}, r)
	for i, want := range []int{200, 200, 429, 429} {
		if w := ask(h, get, "/x", ""); w.Code != want {
			t.Errorf("request %d: got %d, want %d", i, w.Code, want)
		}
	}
	w := ask(h, get, "/x", "")
	if w.Header().Get("Retry-After") != "2" || errcode(t, w) != "M_LIMIT_EXCEEDED" {
		t.Errorf("got %v %s", w.Header(), w.Body)
	}
	now = now.Add(2 * time.Second)
	if w := ask(h, get, "/x", ""); w.Code != 200 {
		t.Errorf("after the wait: got %d", w.Code)
	}
	cfg.RateLimits.Enabled = false
	h = frame(t, cfg, Deps{}, r)
	for range 10 {
		if w := ask(h, get, "/x", ""); w.Code != 200 {
			t.Fatalf("limits are off, but got %d", w.Code)
		}
	}
}

func TestRequestsAreMeasured(t *testing.T) {
	registry := prometheus.NewRegistry()
	h := frame(t, DefaultConfig(), Deps{Metrics: registry}, route{method: get, path: "/x/{roomId}", auth: anybody, handle: (*call).done})
	ask(h, get, "/x/a", "")
	ask(h, get, "/x/b", "")
	ask(h, get, "/nowhere", "")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, f := range families {
		if f.GetName() != "parley_client_request_seconds" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "route" {
					got[l.GetValue()] = m.Histogram.GetSampleCount()
				}
			}
		}
	}
	if got["/x/{roomId}"] != 2 || got["unknown"] != 1 {
		t.Errorf("got %v", got)
	}
}

func TestShutdownEndsWaitingRequests(t *testing.T) {
	waiting := make(chan struct{})
	h := frame(t, DefaultConfig(), Deps{}, route{method: get, path: "/wait", auth: anybody, handle: func(c *call) error {
		close(waiting)
		<-c.ctx().Done()
		return c.done()
	}})
	server := httptest.NewUnstartedServer(nil)
	server.Config = NewServer(h)
	server.Start()
	defer server.Close()
	answered := make(chan error, 1)
	go func() {
		answer, err := http.Get(server.URL + "/wait")
		if err == nil && answer.StatusCode != 200 {
			err = errors.New(answer.Status)
		}
		answered <- err
	}()
	<-waiting
	if err := server.Config.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// A body that breaks off or stands still is the client's fault, and is given up.
func TestBodyThatDoesNotArriveIsGivenUp(t *testing.T) {
	a := newAPI(DefaultConfig(), Deps{Log: slog.New(slog.DiscardHandler)})
	a.patience = 50 * time.Millisecond
	engine, err := a.engine([]route{
		{method: post, path: "/json", auth: anybody, handle: func(c *call) error {
			_, err := c.object()
			return err
		}},
		{method: post, path: "/file", auth: anybody, handle: func(c *call) error {
			_, err := io.Copy(io.Discard, c.uploaded().Body)
			return err
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(engine)
	defer server.Close()
	for name, c := range map[string]struct {
		sent string
		want int
	}{
		"JSON stands still":   {"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", http.StatusBadRequest},
		"JSON breaks off":     {"POST /json HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nno length\r\n", http.StatusBadRequest},
		"upload stands still": {"POST /file HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nthe beginning", http.StatusRequestTimeout},
		"upload breaks off":   {"POST /file HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nno length\r\n", http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, c.sent); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != c.want {
				t.Errorf("got %s, want %d", answer.Status, c.want)
			}
		})
	}
}

// A long answer leaves while it is made. Who gets half of one, or does not read, is told by a broken connection.
func TestLongAnswersLeaveWhileTheyAreMade(t *testing.T) {
	a := newAPI(DefaultConfig(), Deps{Log: slog.New(slog.DiscardHandler)})
	a.patience = 100 * time.Millisecond
	piece := []byte(strings.Repeat("x", 10_000))
	pieces := func(n int, end error) func(*call) error {
		return func(c *call) error {
			return c.stream(func(w io.Writer) error {
				for range n {
					if _, err := w.Write(piece); err != nil {
						return err
					}
				}
				return end
			})
		}
	}
	ended := make(chan error, 1)
	engine, err := a.engine([]route{
		{method: get, path: "/short", auth: anybody, handle: pieces(3, nil)},
		{method: get, path: "/long", auth: anybody, handle: pieces(30, nil)},
		{method: get, path: "/refused", auth: anybody, handle: pieces(3, matrix.Forbidden("no"))},
		{method: get, path: "/broken", auth: anybody, handle: pieces(30, errors.New("the database has gone"))},
		{method: get, path: "/endless", auth: anybody, handle: func(c *call) error {
			return c.stream(func(w io.Writer) error {
				for {
					if _, err := w.Write(piece); err != nil {
						ended <- err
						return err
					}
				}
			})
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(engine)
	defer server.Close()
	for path, want := range map[string]struct {
		status, bytes int
		length        int64
		broken        bool
	}{
		"/short":   {200, 30_000, 30_000, false},
		"/long":    {200, 300_000, -1, false},
		"/refused": {403, len(`{"errcode":"M_FORBIDDEN","error":"no"}`), 38, false},
		"/broken":  {200, 0, -1, true},
	} {
		answer, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != want.status || answer.ContentLength != want.length || (err != nil) != want.broken || !want.broken && len(text) != want.bytes {
			t.Errorf("%s: got %d with %d bytes of %d, %v", path, answer.StatusCode, len(text), answer.ContentLength, err)
		}
		if answer.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: is %s", path, answer.Header.Get("Content-Type"))
		}
	}
	lazy, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer lazy.Close()
	if _, err := io.WriteString(lazy, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("who does not read: %v", err)
	}
}
