// Package api is the client-server API: what clients ask of this server.
//
// A handler is thin: it reads the request, checks that the asker may ask, calls a room of the house and writes the answer.
// There is a file per module of the specification, its routes at the top. The order of things for every request is in
// (*api).serve: path, rate limit by address, access token, account state, rate limit by user, handler. errors.go is the only
// place that writes errors.
package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/server/syncer"
	"parley.im/parley/server/user"
	"parley.im/parley/server/voice"
	"parley.im/parley/storage"
)

// Deps are what the API stands on. All are needed unless it says otherwise.
type Deps struct {
	ServerName matrix.ServerName
	DB         *storage.DB
	Users      *user.Users
	Keys       *keys.Keys
	Push       *push.Push
	Media      *media.Repository
	Rooms      *room.Service
	Sync       *syncer.Service
	Voice      *voice.Service
	// DefaultRoomVersion is that of new rooms, for the capabilities.
	DefaultRoomVersion string
	Log                *slog.Logger          // nil: slog.Default()
	Metrics            prometheus.Registerer // nil: nothing is measured
	Now                func() time.Time      // nil: time.Now
}

// api serves the client-server API. It holds no state of its own but the rate limits and running requests.
type api struct {
	Deps
	cfg     Config
	log     *slog.Logger
	limits  *limiter
	metrics *metrics

	// patience is how long a JSON body may take, and how long an upload may stand still.
	patience   time.Duration
	remembered *otter.Cache[requestKey, *doneOnce]
}

// New makes the handler for /_matrix/client, /_matrix/media, /.well-known/matrix and /_synapse/admin/v1. What it does not
// know it answers with M_UNRECOGNIZED. The error says what is wrong in cfg.
func New(cfg Config, deps Deps) (http.Handler, error) {
	a := newAPI(cfg, deps)
	engine, err := a.engine(a.routes())
	if err != nil {
		return nil, err
	}
	return engine, nil
}

func newAPI(cfg Config, deps Deps) *api {
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	return &api{Deps: deps, cfg: cfg, log: deps.Log, limits: newLimiter(cfg.RateLimits, deps.Now), metrics: newMetrics(deps.Metrics),
		remembered: newRemembered(), patience: bodyTimeout}
}

// engine is the router. Path parameters reach handlers as they were sent: with gin's own unescaping %2F is not found, or
// "+" becomes a space. (*api).serve unescapes them.
func (a *api) engine(routes []route) (*gin.Engine, error) {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.UseEscapedPath = true
	engine.UnescapePathValues = false
	engine.RedirectTrailingSlash = false
	engine.RedirectFixedPath = false
	engine.HandleMethodNotAllowed = true
	if err := engine.SetTrustedProxies(a.cfg.TrustedProxies); err != nil {
		return nil, err
	}
	a.register(engine, routes)
	unknown := &route{auth: anybody, handle: func(*call) error {
		return matrix.Unrecognized("there is no such endpoint")
	}}
	wrongMethod := &route{auth: anybody, handle: func(*call) error {
		return matrix.Unrecognized("the endpoint exists, but not with this method").WithStatus(http.StatusMethodNotAllowed)
	}}
	observe := a.metrics.route("", "unknown")
	engine.NoRoute(func(g *gin.Context) { a.serve(g, unknown, observe) })
	engine.NoMethod(func(g *gin.Context) { a.serve(g, wrongMethod, observe) })
	return engine, nil
}

// NewServer makes an HTTP server around handler that ends gracefully: Shutdown first breaks off the requests that wait
// for something to happen (/sync), which then answer with what they have, and gives the others time to end.
func NewServer(handler http.Handler) *http.Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 20 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	s.RegisterOnShutdown(cancel)
	return s
}
