package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"parley.im/parley/api"
	"parley.im/parley/federation"
	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/server/syncer"
	"parley.im/parley/server/user"
	"parley.im/parley/server/voice"
	"parley.im/parley/server/web"
	"parley.im/parley/storage"
)

// house is one server with all its rooms. Two of them may live in one process.
type house struct {
	cfg      *Config
	log      *slog.Logger
	registry *prometheus.Registry

	lock   *os.File
	db     *storage.DB
	client *federation.Client
	users  *user.Users
	keys   *keys.Keys
	push   *push.Push
	media  *media.Repository
	voice  *voice.Service
	rooms  *room.Service
	sync   *syncer.Service
	sender *federation.Sender

	api        http.Handler
	page       http.Handler // the web client, and the client API behind it
	federation http.Handler

	closers []func() error // in the order of building; called backwards
}

// build builds every room once, in floor order. What it has opened is closed again when it fails.
func build(ctx context.Context, cfg *Config, log *slog.Logger) (h *house, err error) {
	h = &house{cfg: cfg, log: log, registry: prometheus.NewRegistry()}
	opened := h // h is nil once an error is returned
	h.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	if h.lock, err = lockDir(cfg.DataDir); err != nil {
		return nil, err
	}
	h.closers = append(h.closers, h.lock.Close)
	key, err := loadSigningKey(cfg.DataDir, log)
	if err != nil {
		return nil, err
	}
	retired, err := loadRetiredKeys(cfg.DataDir, key.ID)
	if err != nil {
		return nil, err
	}
	if h.db, err = storage.Open(ctx, cfg.Database, log); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	h.closers = append(h.closers, h.db.Close)
	server := matrix.ServerName(cfg.ServerName)
	if err := h.keepName(ctx, server); err != nil {
		return nil, err
	}
	blobs, err := storage.OpenBlobs(ctx, cfg.Blobs, filepath.Join(cfg.DataDir, "media"))
	if err != nil {
		return nil, err
	}
	guard, err := federation.NewGuard(cfg.Outgoing.AllowPrivateAddresses, cfg.Outgoing.AllowAddresses)
	if err != nil {
		return nil, fmt.Errorf("outgoing.allow_addresses: %w", err)
	}
	h.client, err = federation.NewClient(ctx, federation.Options{Config: cfg.Federation, Server: server, Key: key, OldKeys: retired, DB: h.db, Log: log, Metrics: h.registry})
	if err != nil {
		return nil, err
	}
	h.closers = append(h.closers, func() error { h.client.Close(); return nil })
	outside := federation.NewGuardedClient(guard, nil, 30*time.Second)

	h.users = user.New(user.Options{Config: cfg.Users, ServerName: server, DB: h.db, Remote: h.client, Log: log,
		SSO: ssoClient(cfg.Users.SSO, outside)})
	h.keys = keys.New(keys.Options{Config: cfg.Keys, ServerName: server, DB: h.db, Remote: h.client, Log: log})
	h.push = push.New(push.Options{Config: cfg.Push, DB: h.db, Client: outside, Log: log})
	h.media = media.New(media.Options{Config: cfg.Media, Live: cfg.Voice.Live, Server: server, DB: h.db, Blobs: blobs, Remote: h.client, PreviewClient: outside, Log: log})
	h.closers = append(h.closers, h.media.Close)
	h.rooms = room.New(room.Options{Config: cfg.Rooms, ServerName: server, DB: h.db, Key: key, Keys: h.client, Remote: h.client,
		Profile: h.profile, UserExists: h.users.Exists, InviteAllowed: h.inviteAllowed, Ignored: h.users.Ignored, Log: log,
		DeleteBlobs:       func(ctx context.Context) error { return h.media.DeleteDoomed(ctx) },
		AudioUnsigned:     func(ctx context.Context, e *storage.Event) ([]byte, error) { return h.voice.Unsigned(ctx, e) },
		SearchTranscripts: cfg.Voice.Transcripts.Endpoint != ""})
	h.closers = append(h.closers, h.rooms.Close)
	if err := h.rooms.ResumePartial(ctx); err != nil {
		return nil, err
	}
	h.sender = federation.NewSender(h.client, h.rooms)
	h.sync = syncer.New(syncer.Options{Config: cfg.Sync, ServerName: server, DB: h.db, Rooms: h.rooms, Users: h.users, Keys: h.keys, Push: h.push,
		OnEDU: h.sender.SendEDU, Transcripts: cfg.Voice.Transcripts.Endpoint != "", Log: log})
	h.closers = append(h.closers, h.sync.Close)
	h.voice = voice.New(voice.Options{Config: cfg.Voice, DB: h.db, Media: h.media, Rooms: h.rooms, Client: speechClient(cfg.Voice.Transcripts.Endpoint), Log: log,
		Metrics: h.registry})
	h.closers = append(h.closers, h.voice.Close)
	h.federation = federation.NewHandler(federation.HandlerOptions{Client: h.client, Rooms: h.rooms, Users: h.users,
		Keys: h.keys, Media: h.media, Sync: h.sync, Voice: h.voice, Version: version()})
	h.api, err = api.New(cfg.ClientAPI, api.Deps{Voice: h.voice, ServerName: server, Users: h.users, Keys: h.keys, Push: h.push, Media: h.media,
		Rooms: h.rooms, Sync: h.sync, DB: h.db, DefaultRoomVersion: cfg.Rooms.DefaultVersion, Log: log, Metrics: h.registry})
	if err != nil {
		return nil, err
	}
	h.page = h.api
	if cfg.Web.Enabled {
		h.page, err = web.Handler(h.api)
	}
	return h, err
}

// keepName refuses to start under another name than the database was made for: all its users and rooms have that name.
func (h *house) keepName(ctx context.Context, server matrix.ServerName) error {
	const fact = "server_name"
	known, err := h.db.Fact(ctx, fact)
	if errors.Is(err, storage.ErrNotFound) {
		return h.db.SetFact(ctx, fact, string(server))
	}
	if err == nil && known != string(server) {
		return fmt.Errorf("server_name is %q, but this database belongs to %q: a server cannot change its name; set it back, or start with an empty data_dir and database", server, known)
	}
	return err
}

// worker is something that runs in the background until its context ends.
type worker struct {
	name string
	run  func(context.Context) error
}

func (h *house) background() []worker {
	return []worker{
		{"users", h.users.Run},
		{"keys", h.keys.Run},
		{"push", h.push.Run},
		{"media", h.media.Run},
		{"purge", h.rooms.RunPurges},
		{"voice", h.voice.Run},
		{"index", h.rooms.RunIndex},
		{"sync", h.sync.Run},
		{"notify", newNotifier(h).run},
		{"federation", h.sender.Run},
	}
}

func (h *house) close() {
	for i := len(h.closers) - 1; i >= 0; i-- {
		if err := h.closers[i](); err != nil {
			h.log.Error("close", "err", err)
		}
	}
	h.closers = nil
}

// inviteAllowed asks the account data of one of our users. Spec v1.19 client-server-api/#invite-permission
func (h *house) inviteAllowed(ctx context.Context, user, _ matrix.UserID, _ matrix.RoomID) error {
	raw, err := h.users.AccountData(ctx, user, "", "m.invite_permission_config")
	if matrix.ErrorCode(err) == "M_NOT_FOUND" {
		return nil
	} else if err != nil {
		return err
	}
	var config struct {
		DefaultAction json.RawMessage `json:"default_action"`
	}
	if json.Unmarshal(raw, &config) == nil && string(config.DefaultAction) == `"block"` {
		return matrix.InviteBlocked("the user does not take invites")
	}
	return nil
}

// profile is what goes into the member events of one of our users.
func (h *house) profile(ctx context.Context, id matrix.UserID) (p room.Profile, err error) {
	fields, err := h.users.LocalProfile(ctx, id)
	if err != nil {
		return p, err
	}
	for name, to := range map[string]*string{"displayname": &p.DisplayName, "avatar_url": &p.AvatarURL} {
		if raw, ok := fields[name]; ok {
			if err := json.Unmarshal(raw, to); err != nil {
				return p, fmt.Errorf("%s of %s: %w", name, id, err)
			}
		}
	}
	return p, nil
}
