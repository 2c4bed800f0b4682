package api

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"

	"parley.im/parley/server/matrix"
)

// bodyTimeout is how long a client may take to send a JSON body, and how long an upload may stand still.
const bodyTimeout = time.Minute

// body reads the whole body up to the route's limit. More is M_TOO_LARGE.
func (c *call) body() ([]byte, error) {
	limit := c.route.maxBody
	if limit == 0 {
		limit = c.a.cfg.MaxBodyBytes
	}
	if c.Request.ContentLength > limit {
		return nil, matrix.TooLarge("the body is larger than %d bytes", limit)
	}
	if c.Request.ContentLength == 0 {
		return nil, nil
	}
	// Who sends slowly must not hold a request open for ever. What cannot set a deadline is no network connection.
	slow := http.NewResponseController(c.Writer)
	limited := slow.SetReadDeadline(time.Now().Add(c.a.patience)) == nil
	b, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, matrix.TooLarge("the body is larger than %d bytes", limit)
	case err != nil:
		// The deadline stays: net/http reads what is left of a body before it answers.
		return nil, matrix.BadRequest("the body could not be read to its end")
	}
	if limited {
		slow.SetReadDeadline(time.Time{}) // it would break off a handler that waits
	}
	return b, nil
}

// decode reads the body, which must be one JSON object of v's shape. Unknown members are ignored, duplicate ones and
// invalid UTF-8 are refused. The error is M_NOT_JSON for what is no JSON, M_BAD_JSON for wrong types.
func (c *call) decode(v any) error {
	b, err := c.body()
	if err != nil {
		return err
	}
	return decodeJSON(b, v)
}

// decodeOptional is decode for endpoints where clients leave out the body: v then stays as it is.
func (c *call) decodeOptional(v any) error {
	b, err := c.body()
	if err != nil || len(b) == 0 {
		return err
	}
	return decodeJSON(b, v)
}

// object reads a body that is kept as it is: a JSON object, checked for syntax, UTF-8 and duplicate members.
func (c *call) object() ([]byte, error) {
	b, err := c.body()
	if err != nil {
		return nil, err
	}
	return b, checkObject(b)
}

// optionalObject is object for endpoints where clients leave out the body, which then reads as {}.
func (c *call) optionalObject() ([]byte, error) {
	b, err := c.body()
	switch {
	case err != nil:
		return nil, err
	case len(b) == 0:
		return []byte("{}"), nil
	}
	return b, checkObject(b)
}

func checkObject(b []byte) error {
	if !jsontext.Value(b).IsValid() {
		return notJSON(b)
	}
	if jsontext.Value(b).Kind() != '{' {
		return matrix.BadJSON("the body must be a JSON object")
	}
	return nil
}

// decodeJSON is decode for bytes. A NUL character, which no name or text has use for and PostgreSQL cannot store, is refused.
func decodeJSON(b []byte, v any) error {
	if bytes.Contains(b, []byte(`\u0000`)) {
		return matrix.BadJSON("the body contains a NUL character")
	}
	err := json.Unmarshal(b, v)
	var shape *json.SemanticError
	switch {
	case err == nil:
		// "null" leaves v as it is, but is no object.
		if jsontext.Value(b).Kind() == 'n' {
			return matrix.BadJSON("the body must be a JSON object")
		}
		return nil
	case errors.As(err, new(*matrix.Error)):
		return err
	case errors.As(err, &shape):
		// Wrong types are only worth naming in what is JSON at all.
		if !jsontext.Value(b).IsValid() {
			return notJSON(b)
		}
		if shape.JSONPointer == "" {
			return matrix.BadJSON("the body must be a JSON object")
		}
		return matrix.BadJSON("%q has the wrong type", string(shape.JSONPointer)[1:])
	default:
		return notJSON(b)
	}
}

func notJSON(b []byte) error {
	if !utf8.Valid(b) {
		return matrix.NotJSON("the body is not valid UTF-8")
	}
	if len(b) == 0 {
		return matrix.NotJSON("the body is empty; it must be a JSON object")
	}
	return matrix.NotJSON("the body is not valid JSON, or has a member twice")
}

// asV1 gives omitempty the meaning that it has in encoding/json; nil slices and maps are still written as [] and {}.
var asV1 = jsonv1.OmitEmptyWithLegacySemantics(true)

// reply answers 200 with v as JSON.
func (c *call) reply(v any) error { return c.replyStatus(http.StatusOK, v) }

func (c *call) replyStatus(status int, v any) error {
	b, err := json.Marshal(v, asV1)
	if err != nil {
		return err
	}
	return c.write(status, b)
}

// replyJSON answers 200 with JSON that is ready.
func (c *call) replyJSON(b []byte) error {
	return c.write(http.StatusOK, b)
}

// write says how long the answer is, so that a long one is not sent in chunks.
func (c *call) write(status int, b []byte) error {
	h := c.Writer.Header()
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	c.Status(status)
	_, _ = c.Writer.Write(b) // a client that has gone away is no error of ours
	return nil
}

// stream answers 200 with the JSON that make writes. A long answer leaves while it is made; a short one, like an error before the first
// byte has left, is an answer like any other.
func (c *call) stream(make func(io.Writer) error) error {
	s := &streamed{c: c, slow: http.NewResponseController(c.Writer)}
	err := make(s)
	if s.begun {
		_ = s.slow.SetWriteDeadline(time.Time{}) // the connection lives on
	}
	switch {
	case err == nil && !s.begun:
		return c.replyJSON(s.buf)
	case err == nil || !s.begun:
		return err
	default:
		// The client must not take the half that it has for the whole.
		c.a.log.Warn("request broke off", "request", c.id, "route", c.FullPath(), "err", err)
		panic(http.ErrAbortHandler)
	}
}

// streamed holds back the first bytes of an answer.
type streamed struct {
	c     *call
	buf   []byte
	begun bool
	slow  *http.ResponseController
}

// heldBack is how many bytes are held back.
const heldBack = 64 << 10

func (s *streamed) Write(p []byte) (int, error) {
	if !s.begun && len(s.buf)+len(p) <= heldBack {
		s.buf = append(s.buf, p...)
		return len(p), nil
	}
	if !s.begun {
		s.begun = true
		s.c.Writer.Header()["Content-Type"] = jsonType
		s.c.Status(http.StatusOK)
		if _, err := s.send(s.buf); err != nil {
			return 0, err
		}
		s.buf = nil
	}
	return s.send(p)
}

// send gives a client that does not read only so long.
func (s *streamed) send(p []byte) (int, error) {
	_ = s.slow.SetWriteDeadline(time.Now().Add(s.c.a.patience)) // what cannot set one is no network connection
	return s.c.Writer.Write(p)
}

// jsonType is shared by all answers and never changed.
var jsonType = []string{"application/json"}

// done answers 200 with {}.
func (c *call) done() error { return c.replyJSON([]byte("{}")) }

// replyRaw turns a call's result into the answer: the JSON as it is, or the error.
func (c *call) replyRaw(b []byte, err error) error {
	if err != nil {
		return err
	}
	return c.replyJSON(b)
}

// answer turns the result of a call into the answer: return c.answer(a.Users.Device(…)).
func (c *call) answer(v any, err error) error {
	if err != nil {
		return err
	}
	return c.reply(v)
}
