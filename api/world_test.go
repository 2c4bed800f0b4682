package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/server/syncer"
	"parley.im/parley/server/user"
	"parley.im/parley/server/voice"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// world is a whole server of the name "test" without its network.
type world struct {
	t       testing.TB
	api     *api
	handler http.Handler
	db      *storage.DB
	users   *user.Users
}

func newWorld(t testing.TB, cfg Config) *world { return newWorldWith(t, cfg, func(*user.Config) {}) }

func newWorldWith(t testing.TB, cfg Config, change func(*user.Config)) *world {
	t.Helper()
	const name = matrix.ServerName("test")
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	db := storagetest.New(t)
	blobs, err := storage.OpenDiskBlobs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := matrix.NewSigningKey("ed25519:1", bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	userConfig := user.DefaultConfig().CheapPasswords()
	userConfig.Registration, userConfig.RegistrationSharedSecret = "open", "shared"
	change(&userConfig)
	users := user.New(user.Options{Config: userConfig, ServerName: name, DB: db, Log: log})
	rooms := room.New(room.Options{
		Config: room.DefaultConfig(), ServerName: name, DB: db, Key: key, Log: log,
		Profile: func(ctx context.Context, u matrix.UserID) (room.Profile, error) {
			displayName, avatar, err := users.DisplayNameAndAvatar(ctx, u)
			return room.Profile{DisplayName: displayName, AvatarURL: avatar}, err
		},
	})
	t.Cleanup(func() { rooms.Close() })
	files := media.New(media.Options{Config: media.DefaultConfig(), Server: name, DB: db, Blobs: blobs, Log: log})
	t.Cleanup(func() { files.Close() })
	keyRoom := keys.New(keys.Options{Config: keys.DefaultConfig(), ServerName: name, DB: db, Log: log})
	pushRoom := push.New(push.Options{Config: push.DefaultConfig(), DB: db, Log: log})
	sync := syncer.New(syncer.Options{Config: syncer.DefaultConfig(), ServerName: name, DB: db, Rooms: rooms, Users: users, Keys: keyRoom,
		Push: pushRoom, Log: log})
	t.Cleanup(func() { sync.Close() })
	a := newAPI(cfg, Deps{
		ServerName: name, DB: db, Users: users, Rooms: rooms, Media: files, Sync: sync, Log: log, DefaultRoomVersion: "11",
		Keys:  keys.New(keys.Options{Config: keys.DefaultConfig(), ServerName: name, DB: db, Log: log}),
		Push:  push.New(push.Options{Config: push.DefaultConfig(), DB: db, Log: log}),
		Voice: voice.New(voice.Options{Config: voice.DefaultConfig(), DB: db, Media: files, Rooms: rooms, Log: log}),
	})
	engine, err := a.engine(a.routes())
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, api: a, handler: engine, db: db, users: users}
}

// quiet is a configuration without rate limits.
func quiet() Config {
	cfg := DefaultConfig()
	cfg.RateLimits.Enabled = false
	return cfg
}

// person is a user of the world with one device.
type person struct {
	w     *world
	id    matrix.UserID
	token string
}

func (w *world) person(name string) *person { return w.account(user.NewAccount{Localpart: name}) }

func (w *world) account(a user.NewAccount) *person {
	w.t.Helper()
	a.Password = "password of " + a.Localpart
	id, err := w.users.Create(w.t.Context(), a)
	if err != nil {
		w.t.Fatal(err)
	}
	login, err := w.users.OpenSession(w.t.Context(), id, "", "", false, "127.0.0.1")
	if err != nil {
		w.t.Fatal(err)
	}
	return &person{w, id, login.AccessToken}
}

// ask sends a request; a body that is not a string is written as JSON.
func (p *person) ask(method, path string, body any) *httptest.ResponseRecorder {
	p.w.t.Helper()
	text, ok := body.(string)
	if !ok && body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			p.w.t.Fatal(err)
		}
		text = string(b)
	}
	if !strings.HasPrefix(path, "/_") {
		path = "/_matrix/client/v3" + path
	}
	return ask(p.w.handler, method, path, text, "Authorization", "Bearer "+p.token)
}

// must is ask for what has to succeed; it returns the answer.
func (p *person) must(method, path string, body any) map[string]any {
	p.w.t.Helper()
	w := p.ask(method, path, body)
	if w.Code != 200 {
		p.w.t.Fatalf("%s %s: got %d %s", method, path, w.Code, w.Body)
	}
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		p.w.t.Fatalf("%s %s: %v in %s", method, path, err, w.Body)
	}
	return answer
}

// refused is ask for what has to fail.
func (p *person) refused(method, path string, body any, status int, code string) {
	p.w.t.Helper()
	if w := p.ask(method, path, body); w.Code != status || errcode(p.w.t, w) != code {
		p.w.t.Errorf("%s %s: got %d %s, want %d %s", method, path, w.Code, w.Body, status, code)
	}
}
