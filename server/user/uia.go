package user

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// The stages of user-interactive authentication that this server knows.
const (
	stageDummy    = "m.login.dummy"
	stagePassword = "m.login.password"
	stageSSO      = "m.login.sso"
	stageToken    = "m.login.registration_token"
)

// maxAttempts is how often one session may fail before it ends.
const maxAttempts = 10

// Challenge is the body of a 401 answer that asks for (more) authentication.
// Spec v1.19 client-server-api/#user-interactive-api-in-the-rest-api
type Challenge struct {
	Session   string                     `json:"session"`
	Flows     []Flow                     `json:"flows"`
	Params    map[string]json.RawMessage `json:"params"`
	Completed []string                   `json:"completed,omitempty"`
	Code      string                     `json:"errcode,omitempty"`
	Message   string                     `json:"error,omitempty"`
}

// Flow is one way of authenticating.
type Flow struct {
	Stages []string `json:"stages"`
}

// uiaSession is one user-interactive authentication under way.
type uiaSession struct {
	id        string
	operation string        // what it is for; "register" or a call of user
	user      matrix.UserID // "" for register
	request   tokenHash     // of the request's body without auth; zero for register, whose parameters may change
	expires   time.Time
	completed []string
	attempts  int
	token     string // registration token that it holds a use of
}

// uiaSessions are those under way. All live equally long, so the oldest is the next to expire.
type uiaSessions struct {
	max      int
	lifetime time.Duration

	mu   sync.Mutex // guards all below, and the fields of the sessions
	byID map[string]*list.Element
	age  list.List // of *uiaSession, oldest first
}

func (a *uiaSessions) begin(s uiaSession, now time.Time) *uiaSession {
	s.id = base64.RawURLEncoding.EncodeToString(randomBytes(18))
	s.expires = now.Add(a.lifetime)
	if a.byID == nil {
		a.byID = map[string]*list.Element{}
	}
	for a.age.Len() >= a.max {
		a.remove(a.age.Front())
	}
	a.byID[s.id] = a.age.PushBack(&s)
	return &s
}

func (a *uiaSessions) remove(e *list.Element) {
	delete(a.byID, e.Value.(*uiaSession).id)
	a.age.Remove(e)
}

// expire ends the sessions that took too long.
func (a *uiaSessions) expire(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for e := a.age.Front(); e != nil && !now.Before(e.Value.(*uiaSession).expires); e = a.age.Front() {
		a.remove(e)
	}
}

// progress is what the session has completed, and the registration token it holds a use of.
func (a *uiaSessions) progress(s *uiaSession) (completed []string, token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return s.completed, s.token // the slice is never written to, only replaced
}

// end ends a session that has done its work.
func (a *uiaSessions) end(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.byID[id]; e != nil {
		a.remove(e)
	}
}

// pending counts the sessions that hold a use of a registration token.
func (a *uiaSessions) pending(token string, now time.Time) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for e := a.age.Front(); e != nil; e = e.Next() {
		if s := e.Value.(*uiaSession); s.token == token && now.Before(s.expires) {
			n++
		}
	}
	return n
}

// interaction is a request that must be authenticated.
type interaction struct {
	operation string
	user      matrix.UserID
	request   tokenHash
	flows     []Flow
	auth      json.RawMessage
	// check is asked whether a stage is done. M_FORBIDDEN lets the client try again within the session.
	check func(s *uiaSession, stage string, auth json.RawMessage) error
}

// interact takes one step. A nil challenge and a nil error mean that all stages of a flow are complete; the caller ends
// the session when its work is done.
func (u *Users) interact(i interaction) (*uiaSession, *Challenge, error) {
	if len(i.auth) == 0 || string(i.auth) == "null" {
		s := u.beginUIA(i)
		return s, u.challenge(s, i.flows, nil), nil
	}
	var auth struct {
		Type    string `json:"type"`
		Session string `json:"session"`
	}
	if err := json.Unmarshal(i.auth, &auth); err != nil {
		return nil, nil, matrix.BadJSON("auth must be an object whose type and session are strings")
	}
	s := u.findUIA(auth.Session)
	if s == nil {
		s = u.beginUIA(i)
		if auth.Session != "" {
			return s, u.challenge(s, i.flows, matrix.Forbidden("the authentication session is unknown or has expired: start again")), nil
		}
	}
	if s.operation != i.operation || s.user != i.user || s.request != i.request {
		return nil, nil, matrix.Forbidden("the request is not the one that this authentication session was started for")
	}
	completed, _ := u.uia.progress(s)
	if auth.Type != "" && !slices.Contains(completed, auth.Type) {
		if err := u.takeStage(i, s, auth.Type); err != nil {
			var again *matrix.Error
			if !errors.As(err, &again) || again.Code != "M_FORBIDDEN" || again == errOtherUser {
				return nil, nil, err
			}
			return s, u.challenge(s, i.flows, again), nil
		}
	}
	completed, _ = u.uia.progress(s)
	for _, f := range i.flows {
		if slices.Equal(completed, f.Stages) {
			return s, nil, nil
		}
	}
	return s, u.challenge(s, i.flows, nil), nil
}

// takeStage checks one stage and notes it as completed.
func (u *Users) takeStage(i interaction, s *uiaSession, stage string) error {
	completed, _ := u.uia.progress(s)
	next := append(slices.Clone(completed), stage)
	if !slices.ContainsFunc(i.flows, func(f Flow) bool { return isPrefix(next, f.Stages) }) {
		return matrix.Forbidden("the stage %q is not the next one of any flow", clip(stage))
	}
	err := i.check(s, stage, i.auth)
	u.uia.mu.Lock()
	defer u.uia.mu.Unlock()
	if err == nil {
		s.completed = next
	} else if s.attempts++; s.attempts >= maxAttempts {
		if e := u.uia.byID[s.id]; e != nil {
			u.uia.remove(e)
		}
	}
	return err
}

func (u *Users) beginUIA(i interaction) *uiaSession {
	u.uia.mu.Lock()
	defer u.uia.mu.Unlock()
	return u.uia.begin(uiaSession{operation: i.operation, user: i.user, request: i.request}, u.now())
}

// findUIA finds a session that has not expired, or nil.
func (u *Users) findUIA(id string) *uiaSession {
	u.uia.mu.Lock()
	defer u.uia.mu.Unlock()
	if e := u.uia.byID[id]; e != nil && u.now().Before(e.Value.(*uiaSession).expires) {
		return e.Value.(*uiaSession)
	}
	return nil
}

func (u *Users) challenge(s *uiaSession, flows []Flow, err *matrix.Error) *Challenge {
	completed, _ := u.uia.progress(s)
	c := &Challenge{Session: s.id, Flows: flows, Params: map[string]json.RawMessage{}, Completed: completed}
	if err != nil {
		c.Code, c.Message = err.Code, err.Message
	}
	return c
}

func isPrefix(part, whole []string) bool {
	return len(part) <= len(whole) && slices.Equal(part, whole[:len(part)])
}

// Reauthenticate asks a logged-in user to prove who they are again before a sensitive call (delete devices, change the
// password, deactivate, replace cross-signing keys): by the password, or by the company account ([Users.Confirmation]). operation names the call with its path, body is the whole request,
// a JSON object or empty: it must stay the same, but for "auth", while one session goes on. nil, nil means: go ahead.
func (u *Users) Reauthenticate(ctx context.Context, s *Session, operation string, body []byte) (*Challenge, error) {
	request := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(body)) > 0 {
		if err := json.Unmarshal(body, &request); err != nil {
			return nil, matrix.BadJSON("the body must be a JSON object")
		}
	}
	auth := request["auth"]
	delete(request, "auth")
	rest, err := json.Marshal(request) // keys sorted, values as they came
	if err != nil {
		return nil, matrix.BadJSON("the body must be a JSON object")
	}
	has, err := u.db.Authenticators(ctx, s.User)
	if err != nil {
		return nil, err
	}
	session, c, err := u.interact(interaction{
		operation: operation, user: s.User, request: sha256.Sum256(rest), auth: auth, flows: u.reauthFlows(has),
		check: func(_ *uiaSession, stage string, auth json.RawMessage) error {
			if stage == stageSSO { // FinishSSO completes it
				return matrix.Forbidden("the request has not been confirmed with the company account yet")
			}
			return u.checkReauth(ctx, s, auth)
		},
	})
	if err == nil && c == nil {
		u.uia.end(session.id)
	}
	return c, err
}

// reauthFlows are the ways in which a user can prove who they are. Who has neither a password nor a link is asked for the password
// in vain.
func (u *Users) reauthFlows(has storage.Authenticators) (flows []Flow) {
	if len(u.providersOf(has)) > 0 {
		flows = append(flows, Flow{[]string{stageSSO}})
	}
	if len(flows) == 0 || has.Password && u.cfg.PasswordLogin {
		flows = append(flows, Flow{[]string{stagePassword}})
	}
	return flows
}

// checkReauth checks the password stage for the user who is logged in.
func (u *Users) checkReauth(ctx context.Context, s *Session, auth json.RawMessage) error {
	var a struct {
		Identifier json.RawMessage `json:"identifier"`
		User       string          `json:"user"`
		Password   string          `json:"password"`
	}
	if err := json.Unmarshal(auth, &a); err != nil {
		return matrix.BadJSON("auth has members of the wrong type")
	}
	user, err := u.loginUser(LoginRequest{Identifier: a.Identifier, User: a.User})
	if err != nil {
		return err
	}
	if user != s.User {
		return errOtherUser
	}
	return u.checkUserPassword(ctx, user, a.Password)
}

// errOtherUser ends the request, unlike a wrong password.
var errOtherUser = &matrix.Error{Code: "M_FORBIDDEN", Message: "authenticate as the user whose request this is", Status: 403}
