package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"parley.im/parley/storage"
)

const purgeUsage = `usage: parley purge [options] ROOM      delete a room's history, or the whole room
       parley purge [options] -status    list purges

Asks a running server to delete, and shows how far it is until it is done; Ctrl-C ends the watching, not the deleting.
The environment variable PARLEY_ADMIN_TOKEN holds the access token of an administrator.

options:
`

const holdUsage = `usage: parley hold [options] ROOM-OR-USER   set a legal hold
       parley hold [options]                list legal holds

Asks a running server to keep what a room holds, or what a user sends, from being deleted. The environment variable
PARLEY_ADMIN_TOKEN holds the access token of an administrator.

options:
`

const vacuumUsage = `usage: parley vacuum [-config FILE]

Rewrites the database without free space, and gives that back to the file system. The server must be stopped; it needs
as much space again while it works.

options:
`

// adminAPI is a running server as an administrator's commands see it.
type adminAPI struct {
	url, token string
	http       *http.Client
}

func newAdminAPI(base string) (*adminAPI, error) {
	token := os.Getenv("PARLEY_ADMIN_TOKEN")
	if token == "" {
		return nil, errors.New("PARLEY_ADMIN_TOKEN is not set: it must hold the access token of an administrator")
	}
	return &adminAPI{url: strings.TrimSuffix(base, "/") + "/_parley/admin/v1", token: token, http: &http.Client{Timeout: time.Minute}}, nil
}

// call makes one request; body may be nil.
func (a *adminAPI) call(ctx context.Context, method, path string, body, answer any) error {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, a.url+path, reader)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	response, err := a.http.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 8<<20))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		var refused struct{ Errcode, Error string }
		if json.Unmarshal(text, &refused) == nil && refused.Error != "" {
			return fmt.Errorf("%s (%s)", refused.Error, refused.Errcode)
		}
		return fmt.Errorf("the server answers %s", response.Status)
	}
	return json.Unmarshal(text, answer)
}

// purgeState is a purge as the server tells of it.
type purgeState struct {
	ID      string `json:"purge_id"`
	Room    string `json:"room_id"`
	Kind    string `json:"kind"`
	Status  string `json:"status"`
	Error   string `json:"error"`
	Created int64  `json:"created_ts"`
	Total   int64  `json:"events_total"`
	Events  int64  `json:"events"`
	Nodes   int64  `json:"state_nodes"`
	Media   int64  `json:"media"`
}

func (p purgeState) String() string {
	text := fmt.Sprintf("%-7s  %d of %d events looked at are gone, %d state nodes, %d files", p.Status, p.Events, p.Total, p.Nodes, p.Media)
	if p.Error != "" {
		text += ": " + p.Error
	}
	return text
}

func commandPurge(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("purge", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), purgeUsage); flags.PrintDefaults() }
	base := flags.String("url", "http://127.0.0.1:8008", "base `URL` of the server's client API")
	before := flags.String("before", "", "delete what was sent before this `TIME`, such as 2026-01-31 or 2026-01-31T12:00:00Z")
	event := flags.String("event", "", "delete what lies before this `EVENT` in the room's history; it stays itself")
	whole := flags.Bool("whole", false, "delete the whole room")
	force := flags.Bool("force", false, "with -whole: have the users of the server leave the room first")
	keepLocal := flags.Bool("keep-local", false, "keep what users of the server have sent")
	status := flags.Bool("status", false, "list purges instead")
	if err := flags.Parse(args); err != nil {
		return err
	}
	admin, err := newAdminAPI(*base)
	if err != nil {
		return err
	}
	if *status {
		return admin.listPurges(ctx, flags.Arg(0), out)
	}
	if flags.NArg() != 1 {
		return errors.New("name one room by its ID; parley purge -h tells more")
	}
	request := map[string]any{"room_id": flags.Arg(0), "keep_local": *keepLocal, "force": *force}
	switch {
	case *whole && (*before != "" || *event != "") || *before != "" && *event != "":
		return errors.New("-whole, -before and -event exclude each other")
	case *whole:
		request["whole_room"] = true
	case *event != "":
		request["before_event_id"] = *event
	case *before != "":
		at, err := parseTime(*before)
		if err != nil {
			return err
		}
		request["before_ts"] = at.UnixMilli()
	default:
		return errors.New("say what is to go: -before TIME, -event EVENT, or -whole")
	}
	var started purgeState
	if err := admin.call(ctx, http.MethodPost, "/purges", request, &started); err != nil {
		return err
	}
	return admin.watchPurge(ctx, started.ID, out)
}

func parseTime(text string) (time.Time, error) {
	if at, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return at, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("%q is not a time such as 2026-01-31 or 2026-01-31T12:00:00Z", text)
	}
	return at, nil
}

func (a *adminAPI) listPurges(ctx context.Context, room string, out io.Writer) error {
	var answer struct{ Purges []purgeState }
	if err := a.call(ctx, http.MethodGet, "/purges?room_id="+url.QueryEscape(room), nil, &answer); err != nil {
		return err
	}
	for _, p := range answer.Purges {
		fmt.Fprintf(out, "%s  %s  %s  %s  %s\n", p.ID, time.UnixMilli(p.Created).Format(time.DateTime), p.Room, p.Kind, p)
	}
	return nil
}

// watchPurge prints how far a purge is until it is over.
func (a *adminAPI) watchPurge(ctx context.Context, id string, out io.Writer) error {
	fmt.Fprintln(out, "purge", id)
	last := ""
	for {
		var p purgeState
		if err := a.call(ctx, http.MethodGet, "/purges/"+url.PathEscape(id), nil, &p); err != nil {
			return err
		}
		if now := p.String(); now != last {
			fmt.Fprintln(out, " ", now)
			last = now
		}
		switch storage.PurgeStatus(p.Status) {
		case storage.PurgeDone:
			return nil
		case storage.PurgeFailed:
			return errors.New("the purge has failed")
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
}

func commandHold(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("hold", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), holdUsage); flags.PrintDefaults() }
	base := flags.String("url", "http://127.0.0.1:8008", "base `URL` of the server's client API")
	lift := flags.Bool("lift", false, "lift the hold")
	if err := flags.Parse(args); err != nil {
		return err
	}
	admin, err := newAdminAPI(*base)
	if err != nil {
		return err
	}
	if flags.NArg() == 0 {
		var answer struct {
			Holds []struct {
				Room string `json:"room_id"`
				User string `json:"user_id"`
				By   string `json:"set_by"`
				Set  int64  `json:"set_ts"`
			}
		}
		if err := admin.call(ctx, http.MethodGet, "/holds", nil, &answer); err != nil {
			return err
		}
		for _, h := range answer.Holds {
			fmt.Fprintf(out, "%s%s  since %s, by %s\n", h.Room, h.User, time.UnixMilli(h.Set).Format(time.DateTime), h.By)
		}
		return nil
	}
	target := flags.Arg(0)
	path := "/holds/users/" + url.PathEscape(target)
	if strings.HasPrefix(target, "!") {
		path = "/holds/rooms/" + url.PathEscape(target)
	}
	method := http.MethodPut
	if *lift {
		method = http.MethodDelete
	}
	return admin.call(ctx, method, path, nil, &struct{}{})
}

func commandVacuum(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("vacuum", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), vacuumUsage); flags.PrintDefaults() }
	path := configFlag(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg, _, err := loadConfig(configPath(*path))
	if err != nil {
		return err
	}
	if _, err := os.Stat(cfg.DataDir); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	lock, err := lockDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	db, err := storage.Open(ctx, cfg.Database, slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	before, err := db.Size(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := db.Vacuum(ctx); err != nil {
		return err
	}
	after, err := db.Size(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "the database takes %.1f MB instead of %.1f; that took %s\n", float64(after)/1e6, float64(before)/1e6, time.Since(start).Round(10*time.Millisecond))
	return nil
}
