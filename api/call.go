package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/user"
)

// call is one request on its way through a handler.
type call struct {
	*gin.Context
	a       *api
	route   *route
	id      string        // of the request, in its X-Request-ID header and in log lines
	session *user.Session // who asks; nil where nobody is signed in
	errcode string        // of the answer, for the log
}

// serve is what happens to every request.
func (a *api) serve(g *gin.Context, r *route, observe observer) {
	start := time.Now()
	c := &call{Context: g, a: a, route: r, id: requestID()}
	g.Writer.Header()["X-Request-Id"] = []string{c.id}
	allowAllOrigins(g)
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			a.log.Error("panic", "request", c.id, "route", g.FullPath(), "err", p, "stack", string(debug.Stack()))
			c.fail(fmt.Errorf("panic: %v", p))
		}
		took := time.Since(start)
		observe(g.Writer.Status(), took)
		if a.log.Enabled(g.Request.Context(), slog.LevelDebug) {
			a.log.Debug("request", "request", c.id, "method", g.Request.Method, "route", g.FullPath(), "status", g.Writer.Status(),
				"errcode", c.errcode, "user", c.userID(), "took", took)
		}
	}()
	if g.Request.Method == http.MethodOptions {
		g.Status(http.StatusNoContent)
		return
	}
	if err := c.run(); err != nil {
		c.fail(err)
	}
}

// run checks the request in the order: path, access token and account, rate limit; then it calls the handler.
func (c *call) run() error {
	for i, p := range c.Params {
		v, err := url.PathUnescape(p.Value)
		if err != nil || !isText(v) {
			return matrix.InvalidParam("the path is not escaped correctly, or not UTF-8 text")
		}
		c.Params[i].Value = v
	}
	if q, err := url.QueryUnescape(c.Request.URL.RawQuery); err != nil || !isText(q) {
		return matrix.InvalidParam("the query is not escaped correctly, or not UTF-8 text")
	}
	if err := c.authenticate(); err != nil {
		return err
	}
	if c.route.limit != unlimited {
		if err := c.a.limits.allow(c.route.limit, c.who()); err != nil {
			return err
		}
	}
	return c.route.handle(c)
}

// isText reports whether s is UTF-8 without NUL characters, which PostgreSQL cannot store.
func isText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// authenticate finds out who asks and whether they may call the route at all.
func (c *call) authenticate() error {
	if c.route.auth == anybody {
		return nil
	}
	return c.checkToken(c.route.auth == optional)
}

// requireToken is for what a route that is for anybody has for signed-in people only.
func (c *call) requireToken() error { return c.checkToken(false) }

func (c *call) checkToken(mayMiss bool) error {
	token, err := c.token()
	if err != nil {
		return err
	}
	if token == "" {
		if mayMiss {
			return nil
		}
		return matrix.MissingToken("an access token is needed")
	}
	s, err := c.a.Users.Authenticate(c.ctx(), token)
	if err != nil {
		return err
	}
	c.session = s
	c.a.Users.Seen(s, c.ClientIP(), c.Request.UserAgent())
	switch {
	case s.Locked && !c.route.locked:
		return matrix.UserLocked()
	case s.Suspended && !c.route.suspended:
		return matrix.UserSuspended("this account is suspended: it can read, but not do this")
	case c.route.auth == admin && !s.Admin:
		return matrix.Forbidden("only an administrator may do this")
	}
	return nil
}

// token is the access token from the Authorization header or, where the configuration allows it, the query string.
func (c *call) token() (string, error) {
	if h := c.Request.Header["Authorization"]; len(h) > 0 {
		scheme, token, _ := strings.Cut(h[0], " ")
		if !strings.EqualFold(scheme, "Bearer") || len(h) > 1 {
			return "", matrix.MissingToken("the Authorization header must be one: Bearer and an access token")
		}
		return strings.TrimSpace(token), nil
	}
	if c.a.cfg.QueryTokens && strings.Contains(c.Request.URL.RawQuery, "access_token=") {
		return c.Query("access_token"), nil
	}
	return "", nil
}

// who is whose rate limits hold: the user, or the client's address.
func (c *call) who() string {
	if c.session != nil {
		return string(c.session.User)
	}
	return c.ClientIP()
}

// ctx ends with the request: when the client goes away, or the server shuts down.
func (c *call) ctx() context.Context { return c.Request.Context() }

// userID is who asks, "" where nobody is signed in.
func (c *call) userID() matrix.UserID {
	if c.session == nil {
		return ""
	}
	return c.session.User
}

// deviceID is the device that asks.
func (c *call) deviceID() matrix.DeviceID {
	if c.session == nil {
		return ""
	}
	return c.session.Device
}

// roomID is the path's {roomId}.
func (c *call) roomID() (matrix.RoomID, error) { return matrix.ParseRoomID(c.Param("roomId")) }

// eventID is the path's {eventId}.
func (c *call) eventID() (matrix.EventID, error) { return matrix.ParseEventID(c.Param("eventId")) }

// own is the path's {userId}, which must be the asker.
func (c *call) own() (matrix.UserID, error) {
	u, err := matrix.ParseUserID(c.Param("userId"))
	if err != nil {
		return "", err
	}
	if u != c.userID() {
		return "", matrix.Forbidden("this belongs to somebody else")
	}
	return u, nil
}

// pathUser is the path's {userId}.
func (c *call) pathUser() (matrix.UserID, error) { return matrix.ParseUserID(c.Param("userId")) }

// number is a query parameter that must be a whole number from 0 on; fallback where it is missing.
func (c *call) number(name string, fallback int64) (int64, error) {
	s := c.Query(name)
	if s == "" {
		return fallback, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, matrix.InvalidParam("%s must be a whole number, not negative", name)
	}
	return n, nil
}

// limit is the query parameter limit, between 1 and most.
func (c *call) limit(fallback, most int) (int, error) {
	n, err := c.number("limit", int64(fallback))
	if err != nil {
		return 0, err
	}
	return int(min(max(n, 1), int64(most))), nil
}

// boolean is a query parameter that must be true or false; false where it is missing.
func (c *call) boolean(name string) (bool, error) {
	switch c.Query(name) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, matrix.InvalidParam("%s must be true or false", name)
}

// allowAllOrigins lets web clients from anywhere in. Spec v1.19 client-server-api/#web-browser-clients
func allowAllOrigins(g *gin.Context) {
	h := g.Writer.Header()
	for i := range originHeaders {
		h[originHeaders[i].name] = originHeaders[i].value
	}
}

// originHeaders are the same for every answer: the values are shared by all and never changed.
var originHeaders = []struct {
	name  string
	value []string
}{
	{"Access-Control-Allow-Origin", []string{"*"}},
	{"Access-Control-Allow-Methods", []string{"GET, HEAD, POST, PUT, DELETE, OPTIONS"}},
	{"Access-Control-Allow-Headers", []string{"X-Requested-With, Content-Type, Authorization, Date, Range, If-Match, If-None-Match, If-Range"}},
	{"Access-Control-Expose-Headers", []string{"Content-Range, Accept-Ranges, ETag, Retry-After, Location, X-Request-ID"}},
	{"Access-Control-Max-Age", []string{"86400"}},
}

func requestID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
