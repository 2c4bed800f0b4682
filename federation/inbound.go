package federation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-json-experiment/json"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/room"
	"parley.im/parley/server/syncer"
	"parley.im/parley/server/user"
	"parley.im/parley/server/voice"
)

const (
	// maxPerServer bounds the requests of one server that are worked on at the same time.
	maxPerServer = 64
	// longestAnswer bounds the work on a request.
	longestAnswer = 5 * time.Minute
	// bodyTimeout is how long a request's body may take: who cannot sign a request must not hold it open either.
	bodyTimeout = 2 * time.Minute
)

// HandlerOptions are what the server-server API stands on. All are needed unless it says otherwise.
type HandlerOptions struct {
	Client *Client
	Rooms  *room.Service
	Users  *user.Users
	Keys   *keys.Keys
	Media  *media.Repository
	Sync   *syncer.Service
	Voice  *voice.Service
	// Version is what GET /version tells.
	Version string
}

// handler serves the server-server API.
type handler struct {
	HandlerOptions
	cfg      Config
	server   matrix.ServerName
	log      *slog.Logger
	now      func() time.Time
	hosts    []string // further names of this server in the Host header
	replay   replayCache
	txns     transactions
	onbind   chan struct{} // slots for what anybody may have us do
	patience time.Duration // how long a body may take

	mu       sync.Mutex // guards the rest
	inFlight map[matrix.ServerName]int
	liveTo   map[matrix.ServerName]int // recordings that are being passed on; they are not in flight
}

// NewHandler makes the handler for /_matrix/federation and /_matrix/key. What it does not know it answers with
// M_UNRECOGNIZED.
func NewHandler(o HandlerOptions) http.Handler {
	c := o.Client.o
	h := &handler{HandlerOptions: o, cfg: c.Config, server: c.Server, log: c.Log, now: c.Now,
		hosts: append([]string{string(c.Server)}, c.Config.PublicHosts...), onbind: make(chan struct{}, 4), patience: bodyTimeout,
		inFlight: map[matrix.ServerName]int{}, liveTo: map[matrix.ServerName]int{}}
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	// Path parameters are unescaped in one place, (*call).param: gin would turn "+" into a space or not find %2F.
	engine.UseEscapedPath = true
	engine.UnescapePathValues = false
	engine.RedirectTrailingSlash = false
	engine.RedirectFixedPath = false
	engine.HandleMethodNotAllowed = true
	for _, r := range h.routes() {
		engine.Handle(r.method, r.path, func(g *gin.Context) { h.serve(g, r) })
	}
	engine.NoRoute(func(g *gin.Context) {
		h.serve(g, route{handle: func(*call) (any, error) { return nil, matrix.Unrecognized("there is no such endpoint") }})
	})
	engine.NoMethod(func(g *gin.Context) {
		h.serve(g, route{handle: func(*call) (any, error) {
			return nil, matrix.Unrecognized("the endpoint exists, but not with this method").WithStatus(http.StatusMethodNotAllowed)
		}})
	})
	return engine
}

// route is an endpoint. What its function returns is written as JSON; nil says that it has written the answer.
type route struct {
	method, path string
	signed       bool // by another server
	closedToo    bool // answered also by a server that does not federate
	handle       func(*call) (any, error)
}

func (h *handler) routes() []route {
	signed := func(method, path string, fn func(*call) (any, error)) route {
		return route{method: method, path: path, signed: true, handle: fn}
	}
	open := func(method, path string, fn func(*call) (any, error)) route {
		return route{method: method, path: path, closedToo: true, handle: fn}
	}
	const key = "/_matrix/key/v2"
	return []route{
		open("GET", v1+"/version", (*call).version),
		open("GET", v1+"/openid/userinfo", (*call).userInfo),
		open("GET", key+"/server", (*call).ownKeys),
		open("GET", key+"/server/:keyID", (*call).ownKeys),
		{method: "GET", path: key + "/query/:serverName", handle: (*call).queryKeysOf},
		{method: "POST", path: key + "/query", handle: (*call).queryKeys},
		{method: "PUT", path: v1 + "/3pid/onbind", handle: (*call).onBind},

		signed("PUT", v1+"/send/:txnID", (*call).transaction),

		signed("GET", v1+"/make_join/:roomID/:userID", (*call).makeJoin),
		signed("PUT", v2+"/send_join/:roomID/:eventID", (*call).sendJoin),
		signed("PUT", v1+"/send_join/:roomID/:eventID", inPair((*call).sendJoin)),
		signed("GET", v1+"/make_leave/:roomID/:userID", (*call).makeLeave),
		signed("PUT", v2+"/send_leave/:roomID/:eventID", (*call).sendLeave),
		signed("PUT", v1+"/send_leave/:roomID/:eventID", inPair((*call).sendLeave)),
		signed("GET", v1+"/make_knock/:roomID/:userID", (*call).makeKnock),
		signed("PUT", v1+"/send_knock/:roomID/:eventID", (*call).sendKnock),
		signed("PUT", v1+"/invite/:roomID/:eventID", (*call).inviteV1),
		signed("PUT", v2+"/invite/:roomID/:eventID", (*call).inviteV2),
		signed("PUT", v1+"/exchange_third_party_invite/:roomID", (*call).exchangeThirdPartyInvite),

		signed("GET", v1+"/backfill/:roomID", (*call).backfill),
		signed("POST", v1+"/get_missing_events/:roomID", (*call).missingEvents),
		signed("GET", v1+"/event/:eventID", (*call).event),
		signed("GET", v1+"/event_auth/:roomID/:eventID", (*call).eventAuth),
		signed("GET", v1+"/state/:roomID", (*call).state),
		signed("GET", v1+"/state_ids/:roomID", (*call).stateIDs),
		signed("GET", v1+"/timestamp_to_event/:roomID", (*call).timestampToEvent),
		signed("GET", v1+"/hierarchy/:roomID", (*call).hierarchy),

		signed("GET", v1+"/query/profile", (*call).queryProfile),
		signed("GET", v1+"/query/directory", (*call).queryDirectory),
		signed("GET", v1+"/publicRooms", (*call).publicRooms),
		signed("POST", v1+"/publicRooms", (*call).publicRooms),
		signed("GET", v1+"/user/devices/:userID", (*call).userDevices),
		signed("POST", v1+"/user/keys/query", (*call).deviceKeys),
		signed("POST", v1+"/user/keys/claim", (*call).claimKeys),
		signed("GET", v1+"/media/download/:mediaID", (*call).download),
		signed("GET", v1+"/media/thumbnail/:mediaID", (*call).thumbnail),
	}
}

// call is one request under way.
type call struct {
	*gin.Context
	h      *handler
	origin matrix.ServerName // authenticated; empty on routes that are not signed
	body   []byte
	life   context.Context // ends when the other server hangs up
}

func (h *handler) serve(g *gin.Context, r route) {
	c := &call{Context: g, h: h}
	began := time.Now()
	defer func() { h.Client.metrics.served(r, c.Writer.Status(), time.Since(began)) }()
	answer, err := h.answer(c, r)
	if err != nil {
		c.fail(err)
		return
	}
	if answer == nil {
		return
	}
	body, ok := answer.([]byte)
	if !ok {
		if body, err = encode(answer); err != nil {
			c.fail(err)
			return
		}
	}
	c.Data(http.StatusOK, "application/json", body)
}

func (h *handler) answer(c *call, r route) (any, error) {
	if !h.cfg.Enabled && !r.closedToo {
		return nil, matrix.Forbidden("this server does not federate")
	}
	c.life = c.Request.Context()
	ctx, cancel := context.WithTimeout(c.life, longestAnswer)
	defer cancel()
	c.Request = c.Request.WithContext(ctx)
	if !r.signed {
		body, err := c.readBody()
		if err != nil {
			return nil, err
		}
		c.body = body
		return r.handle(c)
	}
	if err := h.authenticate(c); err != nil {
		h.log.Debug("request not authenticated", "route", c.FullPath(), "err", err)
		return nil, err
	}
	if !h.enter(c.origin) {
		return nil, matrix.LimitExceeded(time.Second)
	}
	defer h.leave(c.origin)
	return r.handle(c)
}

func (h *handler) enter(origin matrix.ServerName) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.inFlight[origin] >= maxPerServer {
		return false
	}
	h.inFlight[origin]++
	return true
}

func (h *handler) leave(origin matrix.ServerName) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.inFlight[origin]--; h.inFlight[origin] == 0 {
		delete(h.inFlight, origin)
	}
}

// authenticate finds out which server made the request and that nobody changed it on the way, and reads the body.
// Spec v1.19 server-server-api/#request-authentication
func (h *handler) authenticate(c *call) error {
	r := c.Request
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return matrix.Unauthorized("the request needs one Authorization header with the scheme X-Matrix")
	}
	x, err := parseXMatrix(headers[0])
	if err != nil {
		return matrix.Unauthorized("Authorization: %s", err)
	}
	// If destination is included, but does not match the receiving server's name, the request must be denied with 401.
	if x.Destination != "" && x.Destination != h.server {
		return matrix.Unauthorized("the request is for %s, but this is %s", x.Destination, h.server)
	}
	if x.Origin == h.server {
		return matrix.Unauthorized("the request claims to come from this server itself")
	}
	if !h.cfg.permits(x.Origin) {
		return matrix.Forbidden("this server does not talk to %s", x.Origin)
	}
	sig, err := parseRequestSignature(r.Header, h.now())
	switch {
	case errors.Is(err, errUnsigned):
		if h.Client.mustSign(x.Origin) {
			return matrix.Unauthorized("this server wants an HTTP Signature on the requests of %s", x.Origin)
		}
	case err != nil:
		return matrix.Unauthorized("Signature: %s", err)
	case sig.Server != x.Origin || sig.KeyID != x.KeyID:
		return matrix.Unauthorized("Signature and Authorization are of different keys")
	}
	key, err := h.Client.keys.Key(r.Context(), x.Origin, x.KeyID, h.now())
	if err != nil {
		h.log.Info("no key for a request", "server", x.Origin, "key", x.KeyID, "err", err)
		return matrix.Unauthorized("the key %s of %s could not be had", x.KeyID, x.Origin)
	}
	if sig != nil {
		// Headers first: whoever cannot sign them does not get us to read a body.
		if err := sig.verifyRequest(r, append([]string{r.Host}, h.hosts...), key); err != nil {
			return matrix.Unauthorized("Signature: %s", err)
		}
	}
	body, err := c.readBody()
	if err != nil {
		return err
	}
	if sig != nil {
		sum := sha256.Sum256(body)
		if err := checkDigest(r.Header, sum[:]); err != nil {
			return matrix.Unauthorized("Digest: %s", err)
		}
	}
	if err := x.verify(r.Method, requestTarget(r), body, key); err != nil {
		if known := new(matrix.Error); errors.As(err, &known) {
			return known
		}
		return matrix.Unauthorized("Authorization: %s", err)
	}
	if sig != nil {
		if !h.replay.firstUse(sig, h.now()) {
			return matrix.Unauthorized("this signature was used before")
		}
		if err := h.Client.peers.signed(r.Context(), x.Origin); err != nil {
			return err
		}
	}
	h.Client.peers.heard(x.Origin)
	c.origin, c.body = x.Origin, body
	return nil
}

// requestTarget is the path and query as they were sent.
func requestTarget(r *http.Request) string {
	if len(r.RequestURI) > 0 && r.RequestURI[0] == '/' {
		return r.RequestURI
	}
	return r.URL.RequestURI()
}

func (c *call) readBody() ([]byte, error) {
	if c.Request.Body == nil || c.Request.ContentLength == 0 {
		return nil, nil
	}
	limit := c.h.cfg.MaxRequestBytes
	if c.Request.ContentLength > limit {
		return nil, matrix.TooLarge("the body is larger than %d bytes", limit)
	}
	slow := http.NewResponseController(c.Writer)
	limited := slow.SetReadDeadline(time.Now().Add(c.h.patience)) == nil // what cannot is no network connection
	body, err := io.ReadAll(io.LimitReader(c.Request.Body, limit+1))
	switch { // after an error the deadline stays: net/http reads what is left of a body before it answers
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, matrix.NewError(http.StatusRequestTimeout, "M_UNKNOWN", "the body did not arrive within %s", c.h.patience)
	case err != nil:
		return nil, matrix.BadRequest("the body broke off")
	}
	if int64(len(body)) > limit {
		return nil, matrix.TooLarge("the body is larger than %d bytes", limit)
	}
	if limited {
		slow.SetReadDeadline(time.Time{}) // it would break off a handler that waits
	}
	return body, nil
}

// fail writes an error. Nothing else does.
func (c *call) fail(err error) {
	var known *matrix.Error
	switch {
	case c.Writer.Written():
		c.h.log.Warn("answer broke off", "server", c.origin, "route", c.FullPath(), "err", err)
		panic(http.ErrAbortHandler) // so that the other side does not take it for complete
	case errors.As(err, &known):
	case errors.Is(err, context.Canceled):
		known = matrix.NewError(http.StatusServiceUnavailable, "M_UNKNOWN", "the request was broken off")
	case errors.Is(err, context.DeadlineExceeded):
		known = matrix.ConnectionTimeout("this took too long")
	default:
		known = matrix.Unknown("internal error")
		c.h.log.Error("request failed", "server", c.origin, "route", c.FullPath(), "err", err)
	}
	if known.Status == 0 {
		known = known.WithStatus(http.StatusInternalServerError)
	}
	if known.RetryAfter > 0 {
		c.Header("Retry-After", strconv.Itoa(int(math.Ceil(known.RetryAfter.Seconds()))))
	}
	body, err := known.MarshalJSON()
	if err != nil {
		body = []byte(`{"errcode":"M_UNKNOWN","error":"internal error"}`)
	}
	c.Data(known.Status, "application/json", body)
	c.Abort()
}

// ctx ends when the other server hangs up, at the latest after five minutes.
func (c *call) ctx() context.Context { return c.Request.Context() }

// decode reads the body, which must be a JSON object.
func (c *call) decode(into any) error {
	if len(bytes.TrimSpace(c.body)) == 0 || bytes.TrimSpace(c.body)[0] != '{' {
		return matrix.NotJSON("the body is not a JSON object")
	}
	if err := json.Unmarshal(c.body, into); err != nil {
		return matrix.BadJSON("body: %s", shorten(err))
	}
	return nil
}

// shorten keeps what the JSON package says about the place, without the content.
func shorten(err error) string {
	var semantic *json.SemanticError
	if errors.As(err, &semantic) && semantic.JSONPointer != "" {
		return fmt.Sprintf("wrong value at %s", semantic.JSONPointer)
	}
	return "it has the wrong shape"
}

// param is a part of the path, unescaped.
func (c *call) param(name string) (string, error) {
	s, err := url.PathUnescape(c.Context.Param(name))
	if err != nil {
		return "", matrix.InvalidParam("%s in the path is not escaped properly", name)
	}
	return s, nil
}

func (c *call) roomID() (matrix.RoomID, error) {
	s, err := c.param("roomID")
	if err != nil {
		return "", err
	}
	id, err := matrix.ParseRoomID(s)
	if err != nil {
		return "", matrix.InvalidParam("%s", err)
	}
	return id, nil
}

func (c *call) eventID() (matrix.EventID, error) {
	s, err := c.param("eventID")
	if err != nil {
		return "", err
	}
	return parseEventID(s)
}

func parseEventID(s string) (matrix.EventID, error) {
	id, err := matrix.ParseEventID(s)
	if err != nil {
		return "", matrix.InvalidParam("%s", err)
	}
	return id, nil
}

func (c *call) userID() (matrix.UserID, error) {
	s, err := c.param("userID")
	if err != nil {
		return "", err
	}
	id, err := matrix.ParseUserID(s)
	if err != nil {
		return "", matrix.InvalidParam("%s", err)
	}
	return id, nil
}

// localUser is a user of this server, named by the other one.
func (c *call) localUser(s string) (matrix.UserID, error) {
	id, err := matrix.ParseUserID(s)
	if err != nil {
		return "", matrix.InvalidParam("%s", err)
	}
	if id.Server() != c.h.server {
		return "", matrix.InvalidParam("%s is not a user of this server", id)
	}
	return id, nil
}

// number reads a whole number of the query; absent gives missing.
func (c *call) number(name string, missing int64) (int64, error) {
	s, ok := c.GetQuery(name)
	if !ok {
		return missing, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, matrix.InvalidParam("%s is not a whole number", name)
	}
	return n, nil
}

func (c *call) flag(name string) bool { return c.Query(name) == "true" }
