package push

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Notification is an event that a user is to be told of.
type Notification struct {
	User    matrix.UserID
	RoomID  matrix.RoomID
	EventID matrix.EventID
	Type    string
	Sender  matrix.UserID
	Content json.RawMessage
	Result  Result // what the rules say; without Notify nothing is sent

	SenderName string // display name in the room
	RoomName   string
	RoomAlias  string
	Unread     int  // rooms with unread notifications, this one included
	IsTarget   bool // the event is about the user's own membership
}

const (
	maxQueued       = 100 // per pusher; the newest are kept
	maxNotification = 4096
	answerLimit     = 64 * 1024
	firstRetry      = 10 * time.Second
	longestRetry    = time.Hour
	idle            = time.Hour
)

// HasPushers reports whether the user has any. From memory when warm.
func (p *Push) HasPushers(ctx context.Context, user matrix.UserID) (bool, error) {
	rows, err := p.pushersOf(ctx, user)
	return len(rows) > 0, err
}

// Any reports whether anybody has a pusher. From memory when warm.
func (p *Push) Any(ctx context.Context) (bool, error) {
	return p.any.Load(struct{}{}, func() (bool, error) {
		users, err := p.db.UsersWithPushers(ctx, 1)
		return len(users) > 0, err
	})
}

// Notify queues the notification for every pusher of the user and returns when that is durable; Run delivers it.
// No query for a user without pushers.
func (p *Push) Notify(ctx context.Context, n Notification) error {
	if !n.Result.Notify {
		return nil
	}
	return p.queue(ctx, n.User, func(data map[string]json.RawMessage, device map[string]any) map[string]any {
		return n.body(data, device)
	})
}

// Read tells the user's pushers the number of rooms with unread notifications after a receipt was sent.
func (p *Push) Read(ctx context.Context, user matrix.UserID, unread int) error {
	return p.queue(ctx, user, func(_ map[string]json.RawMessage, device map[string]any) map[string]any {
		// A count of zero must be told too, or the badge stays.
		return map[string]any{"counts": map[string]int{"unread": unread}, "devices": []any{device}}
	})
}

func (p *Push) queue(ctx context.Context, user matrix.UserID, body func(data map[string]json.RawMessage, device map[string]any) map[string]any) error {
	rows, err := p.pushersOf(ctx, user)
	if err != nil || len(rows) == 0 || p.client == nil {
		return err
	}
	now := p.now().UnixMilli()
	var queued []storage.QueuedPush
	for _, row := range rows {
		var s pusher
		if err := json.Unmarshal(row.Content, &s); err != nil {
			return fmt.Errorf("pusher of %s: %w", user, err)
		}
		data := make(map[string]json.RawMessage, len(s.Data))
		for k, v := range s.Data {
			if k != "url" {
				data[k] = v
			}
		}
		device := map[string]any{"app_id": s.AppID, "pushkey": s.PushKey, "pushkey_ts": row.CreatedMS / 1000, "data": data}
		encoded, err := json.Marshal(map[string]any{"notification": body(data, device)})
		if err != nil {
			return err
		}
		queued = append(queued, storage.QueuedPush{User: user, AppID: s.AppID, PushKey: s.PushKey, Body: encoded, CreatedMS: now})
	}
	return p.db.QueuePushes(ctx, queued, maxQueued)
}

// body is the notification in the format that the pusher asks for.
// Spec v1.19 push-gateway-api/#post_matrixpushv1notify
func (n *Notification) body(data map[string]json.RawMessage, device map[string]any) map[string]any {
	prio := "low"
	if n.Result.Highlight || n.Result.Sound != "" {
		prio = "high"
	}
	body := map[string]any{"event_id": n.EventID, "room_id": n.RoomID, "prio": prio, "devices": []any{device}}
	if n.Unread > 0 {
		body["counts"] = map[string]int{"unread": n.Unread}
	}
	if string(data["format"]) == `"event_id_only"` {
		return body
	}
	tweaks := map[string]any{}
	if n.Result.Highlight {
		tweaks["highlight"] = true
	}
	if n.Result.Sound != "" {
		tweaks["sound"] = n.Result.Sound
	}
	device["tweaks"] = tweaks
	body["type"], body["sender"] = n.Type, n.Sender
	for key, value := range map[string]string{"sender_display_name": n.SenderName, "room_name": n.RoomName, "room_alias": n.RoomAlias} {
		if value != "" {
			body[key] = value
		}
	}
	if n.IsTarget {
		body["user_is_target"] = true
	}
	if len(n.Content) <= maxNotification {
		body["content"] = n.Content
	}
	return body
}

// Run delivers queued notifications to gateways and ends with ctx.
func (p *Push) Run(ctx context.Context) error {
	for {
		wait := p.deliver(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-p.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// deliver sends all that is due and says how long nothing is.
func (p *Push) deliver(ctx context.Context) time.Duration {
	for p.client != nil && ctx.Err() == nil {
		due, nextMS, err := p.db.DuePushes(ctx, p.now().UnixMilli(), 100)
		if err != nil {
			p.log.Error("look for notifications to deliver", "err", err)
			return time.Minute
		}
		if len(due) == 0 {
			if nextMS == 0 {
				return idle
			}
			return min(idle, max(100*time.Millisecond, time.UnixMilli(nextMS).Sub(p.now())))
		}
		p.deliverAll(ctx, due)
	}
	return idle
}

// deliverAll sends to several pushers at the same time, to each in order.
func (p *Push) deliverAll(ctx context.Context, due []storage.QueuedPush) {
	type key struct {
		user           matrix.UserID
		appID, pushKey string
	}
	byPusher := map[key][]storage.QueuedPush{}
	for _, q := range due {
		k := key{q.User, q.AppID, q.PushKey}
		byPusher[k] = append(byPusher[k], q)
	}
	var group errgroup.Group
	group.SetLimit(max(1, p.cfg.Workers))
	for _, list := range byPusher {
		group.Go(func() error {
			for _, q := range list {
				if !p.deliverOne(ctx, q) {
					break
				}
			}
			return nil
		})
	}
	_ = group.Wait() // its functions return no error
}

// deliverOne sends one request and takes it off the queue, or puts off all of the pusher's: false.
func (p *Push) deliverOne(ctx context.Context, q storage.QueuedPush) bool {
	err := p.post(ctx, q)
	if ctx.Err() != nil {
		return false
	}
	now := p.now()
	if err == nil || now.Sub(time.UnixMilli(q.CreatedMS)) >= p.cfg.GiveUpAfter {
		if err != nil {
			p.log.Warn("give up a notification", "user", q.User, "app", q.AppID, "err", err)
		}
		if err := p.db.DeletePush(ctx, q.ID); err != nil {
			p.log.Error("take a notification off the queue", "err", err)
			return false
		}
		return true
	}
	p.log.Info("gateway did not take a notification", "user", q.User, "app", q.AppID, "attempts", q.Attempts+1, "err", err)
	wait := min(longestRetry, firstRetry<<min(q.Attempts, 20))
	if err := p.db.RetryPushes(ctx, q, now.Add(wait).UnixMilli()); err != nil {
		p.log.Error("put off a notification", "err", err)
	}
	return false
}

// post sends one request to the pusher's gateway of now. nil means that it was taken, or that there is no such pusher
// any more.
func (p *Push) post(ctx context.Context, q storage.QueuedPush) error {
	rows, err := p.pushersOf(ctx, q.User)
	if err != nil {
		return err
	}
	gateway := ""
	for _, row := range rows {
		var s struct {
			Data struct {
				URL string `json:"url"`
			} `json:"data"`
		}
		if row.AppID == q.AppID && row.PushKey == q.PushKey && json.Unmarshal(row.Content, &s) == nil {
			gateway = s.Data.URL
		}
	}
	if gateway == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.GatewayTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, gateway, bytes.NewReader(q.Body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := p.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the gateway answered %d", response.StatusCode)
	}
	var answer struct {
		Rejected []string `json:"rejected"`
	}
	if json.NewDecoder(io.LimitReader(response.Body, answerLimit)).Decode(&answer) != nil {
		return nil // it was taken all the same
	}
	for _, key := range answer.Rejected {
		if key == q.PushKey {
			p.log.Info("gateway rejected a pusher", "user", q.User, "app", q.AppID)
			return p.db.DeletePushKey(ctx, q.AppID, key)
		}
	}
	return nil
}
