package api

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/user"
)

// fail answers with err. It is the only place that writes errors. A *matrix.Error in err's chain is what the client
// sees; everything else is our fault: M_UNKNOWN 500 and a line in the log with the request's ID.
func (c *call) fail(err error) {
	var known *matrix.Error
	switch {
	case c.Writer.Written():
		// Too late for an answer: a download broke off. The connection is closed so that the client notices.
		c.a.log.Warn("request broke off", "request", c.id, "route", c.FullPath(), "err", err)
		return
	case errors.As(err, &known):
	case errors.Is(err, context.Canceled) && c.Request.Context().Err() != nil:
		// The client has gone away, or the server shuts down; nobody reads this.
		known = matrix.NewError(http.StatusServiceUnavailable, "M_UNKNOWN", "the request was broken off")
	case errors.Is(err, context.DeadlineExceeded):
		known = matrix.ConnectionTimeout("this took too long")
		c.a.log.Warn("request timed out", "request", c.id, "route", c.FullPath(), "user", c.userID(), "err", err)
	default:
		known = matrix.Unknown("internal error; the administrator finds it in the log as request %s", c.id)
		c.a.log.Error("request failed", "request", c.id, "route", c.FullPath(), "user", c.userID(), "err", err)
	}
	c.writeError(known)
}

func (c *call) writeError(e *matrix.Error) {
	status := e.Status
	if status == 0 {
		status = http.StatusInternalServerError
	}
	if e.RetryAfter > 0 {
		c.Header("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	body, err := e.MarshalJSON()
	if err != nil {
		body = []byte(`{"errcode":"M_UNKNOWN","error":"internal error"}`)
		status = http.StatusInternalServerError
		c.a.log.Log(c.Request.Context(), slog.LevelError, "encode error", "request", c.id, "err", err)
	}
	c.errcode = e.Code
	c.Header("Cache-Control", "no-store")
	c.Data(status, "application/json", body)
	c.Abort()
}

// challenge answers 401 with what is still needed to authenticate: no error, though it may carry one of its stages.
// Spec v1.19 client-server-api/#user-interactive-authentication-api
func (c *call) challenge(needed *user.Challenge) error {
	c.errcode = needed.Code
	return c.replyStatus(http.StatusUnauthorized, needed)
}
