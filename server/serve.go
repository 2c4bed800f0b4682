package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/lmittmann/tint"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"parley.im/parley/api"
)

// defaultConfigFile is read when it is there and -config does not name another one.
const defaultConfigFile = "parley.yaml"

// configFlag adds -config to a command.
func configFlag(flags *flag.FlagSet) *string {
	return flags.String("config", "", "configuration `file`; without it parley.yaml is read if there is one")
}

func configPath(path string) string {
	if path == "" {
		if _, err := os.Stat(defaultConfigFile); err == nil {
			return defaultConfigFile
		}
	}
	return path
}

func commandServe(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("parley", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usageText) }
	path := configFlag(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("there is no command %q; parley -h lists them", flags.Arg(0))
	}
	cfg, warnings, err := loadConfig(configPath(*path))
	if err != nil {
		return err
	}
	log := newLogger(cfg.Log, stderr)
	for _, w := range warnings {
		log.Warn(w)
	}
	h, err := build(ctx, cfg, log)
	if err != nil {
		return err
	}
	return h.serve(ctx, func() { h.greet(ctx, stdout) })
}

func newLogger(cfg LogConfig, out io.Writer) *slog.Logger {
	level, err := cfg.level()
	if err != nil {
		level = slog.LevelInfo // complete has refused it before
	}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level}))
	}
	terminal := false
	if file, ok := out.(*os.File); ok {
		stat, err := file.Stat()
		terminal = err == nil && stat.Mode()&os.ModeCharDevice != 0
	}
	return slog.New(tint.NewTextHandler(out, &tint.Options{Level: level, TimeFormat: time.DateTime, NoColor: !terminal}))
}

// serve listens until ctx ends, then stops in order: no new requests, those under way answered, the rooms closed.
// ready is called when all listeners are open.
func (h *house) serve(ctx context.Context, ready func()) error {
	defer h.close()
	handler := h.handler()
	servers := []*http.Server{}
	// What runs in the background ends after the requests, which may need it.
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	group, groupCtx := errgroup.WithContext(ctx)
	var working sync.WaitGroup
	for _, run := range h.background() {
		working.Go(func() {
			if err := run.run(background); err != nil && !errors.Is(err, context.Canceled) {
				h.log.Error("background work ended", "work", run.name, "err", err)
			}
		})
	}
	listen := func(option, address string, handler http.Handler, config *tls.Config) error {
		if address == "" {
			return nil
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("%s: %w; is another program using this address?", option, err)
		}
		if config != nil {
			listener = tls.NewListener(listener, config)
		}
		server := api.NewServer(handler)
		server.ErrorLog = slog.NewLogLogger(h.log.Handler(), slog.LevelDebug)
		servers = append(servers, server)
		group.Go(func() error {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		return nil
	}
	err := listen("listen", h.cfg.Listen, handler, nil)
	if err == nil && h.cfg.TLS.Listen != "" {
		var config *tls.Config
		if config, err = h.cfg.TLS.config(h.log); err == nil {
			err = listen("tls.listen", h.cfg.TLS.Listen, handler, config)
		}
	}
	if err == nil {
		err = listen("metrics.listen", h.cfg.Metrics.Listen, h.metricsHandler(), nil)
	}
	if err == nil {
		ready()
		debug.FreeOSMemory() // what the start needed, an idle server does not
		<-groupCtx.Done()
		h.log.Info("stopping")
	}
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.ShutdownTimeout)
	defer cancel()
	var stopping sync.WaitGroup
	for _, s := range servers {
		stopping.Go(func() {
			if err := s.Shutdown(deadline); err != nil {
				h.log.Warn("requests were cut off", "err", err)
				_ = s.Close()
			}
		})
	}
	stopping.Wait()
	err = errors.Join(err, group.Wait())
	stopBackground()
	working.Wait()
	return err
}

// handler sends each request to its door.
func (h *house) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case strings.HasPrefix(path, "/_matrix/federation/"), strings.HasPrefix(path, "/_matrix/key/"):
			h.federation.ServeHTTP(w, r)
		case path == "/_parley/health":
			h.health(w, r)
		case strings.HasPrefix(path, "/_matrix/"):
			h.api.ServeHTTP(w, r)
		default:
			h.page.ServeHTTP(w, r)
		}
	})
}

// health answers 200 while the database answers.
func (h *house) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	if err := h.db.Ping(ctx); err != nil {
		h.log.Error("health check", "err", err)
		http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

func (h *house) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// config reads the certificate, and reads it again when its file changes: renewals need no restart.
func (c TLSConfig) config(log *slog.Logger) (*tls.Config, error) {
	k := &certificateKeeper{cfg: c, log: log}
	if _, err := k.get(nil); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return &tls.Config{GetCertificate: k.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}, nil
}

type certificateKeeper struct {
	cfg     TLSConfig
	log     *slog.Logger
	mu      sync.Mutex // guards what follows
	checked time.Time
	changed time.Time
	current *tls.Certificate
}

// certificateInterval is how often at most the file is looked at.
const certificateInterval = 10 * time.Second

func (k *certificateKeeper) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != nil && time.Since(k.checked) < certificateInterval {
		return k.current, nil
	}
	k.checked = time.Now()
	stat, err := os.Stat(k.cfg.Certificate)
	if err == nil && (k.current == nil || !stat.ModTime().Equal(k.changed)) {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(k.cfg.Certificate, k.cfg.Key); err == nil {
			k.current, k.changed = &pair, stat.ModTime()
		}
	}
	if err != nil && k.current != nil { // half a renewal: the old one serves until the new one is whole
		k.log.Warn("read the certificate again", "file", k.cfg.Certificate, "err", err)
		return k.current, nil
	}
	return k.current, err
}

// greet says where the server is and what to do next.
func (h *house) greet(ctx context.Context, out io.Writer) {
	base := h.cfg.ClientAPI.PublicURL
	if base == "" {
		base = "http://" + h.cfg.Listen
		if h.cfg.Listen == "" {
			base = "https://" + h.cfg.TLS.Listen
		}
	}
	database, _, _ := strings.Cut(h.cfg.Database.URL, ":")
	fmt.Fprintf(out, "\nParley %s is running as %s\n  clients   %s\n  data      %s (%s)\n", version(), h.cfg.ServerName, base, h.cfg.DataDir, database)
	token, err := h.users.FirstAdminToken(ctx)
	if err != nil {
		h.log.Error("make the token for the first account", "err", err)
	}
	if token != "" {
		fmt.Fprintf(out, `
There is no account yet. Open this link to create the first one, which becomes the administrator:

  %s/#register?registration_token=%s

Its registration token is good for one account, with any Matrix client, or so:

  curl %s/_matrix/client/v3/register -d '{"username":"YOU","password":"A LONG PASSWORD","auth":{"type":"m.login.registration_token","token":"%s"}}'
`, base, token, base, token)
	}
	if !h.cfg.Users.PasswordLogin {
		fmt.Fprintf(out, "\nPeople sign in with their company account at %s\n", h.cfg.ClientAPI.PublicURL)
	}
	fmt.Fprint(out, "\nNext: docs/operations.md (name, TLS, backup). Ctrl-C stops the server.\n\n")
}
