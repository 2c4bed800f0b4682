package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// people registers n users of one server, a few at a time.
func (b *bench) people(ctx context.Context, s *benchServer, name string, n int) ([]*benchUser, error) {
	users := make([]*benchUser, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range users {
		group.Go(func() (err error) {
			users[i], err = s.register(ctx, fmt.Sprintf("%s%s%d", name, b.run, i))
			return err
		})
	}
	return users, group.Wait()
}

// roomOf makes a public room and has everyone join it; the first makes it.
func (b *bench) roomOf(ctx context.Context, users []*benchUser) (string, error) {
	room, err := users[0].createRoom(ctx, "public_chat")
	if err != nil {
		return "", err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, u := range users[1:] {
		group.Go(func() error { return u.join(ctx, room, "") })
	}
	return room, group.Wait()
}

// readerOf starts following a room from now on. It waits until the room is shown as joined: a server may answer a join through another server
// before it knows the members, and show the room to clients that want all of them when it does.
func readerOf(ctx context.Context, u *benchUser, room string) (*reader, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r := &reader{benchUser: u, room: room}
	for timeout := time.Duration(0); ; timeout = 10 * time.Second {
		answer, err := u.sync(ctx, r.since, timeout)
		if err != nil {
			return nil, fmt.Errorf("wait for %s to be shown: %w", room, err)
		}
		r.since = answer.NextBatch
		if _, shown := answer.Rooms.Join[room]; shown {
			return r, nil
		}
	}
}

// send: one client sends messages one after the other, each as soon as the last is answered.
func (b *bench) send(ctx context.Context) error {
	users, err := b.people(ctx, b.w1, "send", 1)
	if err != nil {
		return err
	}
	room, err := b.roomOf(ctx, users)
	if err != nil {
		return err
	}
	sent, m := []string{}, b.measure("send")
	for i := range b.messages {
		text := fmt.Sprintf("message %d", i)
		start := time.Now()
		if _, err := users[0].say(ctx, room, text); err != nil {
			return err
		}
		m.add(time.Since(start))
		sent = append(sent, text)
	}
	m.report(b.messages, "messages")
	return b.checkHistory(ctx, users[0], room, sent)
}

// checkHistory reads a room's whole history and compares it with what was sent.
func (b *bench) checkHistory(ctx context.Context, u *benchUser, room string, sent []string) error {
	r := &reader{benchUser: u}
	from := ""
	for {
		var page struct {
			End   string
			Chunk []struct {
				Type    string
				Content struct{ Body string }
			}
		}
		path := "/rooms/" + url.PathEscape(room) + "/messages?dir=f&limit=100"
		if from != "" {
			path += "&from=" + url.QueryEscape(from)
		}
		if err := u.do(ctx, "GET", path, nil, &page); err != nil {
			return err
		}
		for _, e := range page.Chunk {
			if e.Type == "m.room.message" {
				r.seen = append(r.seen, e.Content.Body)
			}
		}
		if page.End == "" || page.End == from || len(page.Chunk) == 0 {
			return r.check(sent)
		}
		from = page.End
	}
}

// parallel: many clients send at the same time, each in a room of its own.
func (b *bench) parallel(ctx context.Context) error {
	users, err := b.people(ctx, b.w1, "par", b.clients)
	if err != nil {
		return err
	}
	rooms := make([]string, len(users))
	for i, u := range users {
		if rooms[i], err = u.createRoom(ctx, "private_chat"); err != nil {
			return err
		}
	}
	each := max(1, b.messages/len(users))
	m := b.measure("parallel")
	var mu sync.Mutex
	group, groupCtx := errgroup.WithContext(ctx)
	for i, u := range users {
		group.Go(func() error {
			for j := range each {
				start := time.Now()
				if _, err := u.say(groupCtx, rooms[i], fmt.Sprint(j)); err != nil {
					return err
				}
				mu.Lock()
				m.add(time.Since(start))
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	m.report(each*len(users), "messages")
	var sent []string
	for j := range each {
		sent = append(sent, fmt.Sprint(j))
	}
	for i, u := range users {
		if err := b.checkHistory(ctx, u, rooms[i], sent); err != nil {
			return err
		}
	}
	return nil
}

// fanout: many readers wait in /sync while one sends, first few readers and then many: the difference is the price of one
// more.
func (b *bench) fanout(ctx context.Context) error {
	users, err := b.people(ctx, b.w1, "fan", b.waiting+1)
	if err != nil {
		return err
	}
	room, err := b.roomOf(ctx, users)
	if err != nil {
		return err
	}
	const messages = 50
	readers := make([]*reader, b.waiting)
	for i, u := range users[1:] {
		if readers[i], err = readerOf(ctx, u, room); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	starts := map[string]time.Time{}
	var sent []string
	m := b.measure("fanout")
	group, groupCtx := errgroup.WithContext(ctx)
	for _, r := range readers {
		group.Go(func() error {
			return r.follow(groupCtx, messages, func(body string) {
				now := time.Now()
				mu.Lock()
				defer mu.Unlock()
				m.add(now.Sub(starts[body]))
			})
		})
	}
	group.Go(func() error {
		for i := range messages {
			text := fmt.Sprintf("fanout %d", i)
			mu.Lock()
			starts[text] = time.Now()
			sent = append(sent, text)
			mu.Unlock()
			if _, err := users[0].say(groupCtx, room, text); err != nil {
				return err
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	m.report(messages*len(readers), "deliveries")
	for _, r := range readers {
		if err := r.check(sent); err != nil {
			return err
		}
	}
	return nil
}

// bigRoom: messages in a room of many local members of whom none waits.
func (b *bench) bigRoom(ctx context.Context) error {
	users, err := b.people(ctx, b.w1, "big", b.members)
	if err != nil {
		return err
	}
	joins := b.measure("joins")
	room, err := b.roomOf(ctx, users)
	if err != nil {
		return err
	}
	joins.report(b.members, "joins")
	const messages = 200
	m := b.measure("bigroom")
	for i := range messages {
		start := time.Now()
		if _, err := users[0].say(ctx, room, fmt.Sprint(i)); err != nil {
			return err
		}
		m.add(time.Since(start))
	}
	m.report(messages, "messages")
	return nil
}

// initialSync: a user with many rooms signs in anew.
func (b *bench) initialSync(ctx context.Context) error {
	users, err := b.people(ctx, b.w1, "init", 2)
	if err != nil {
		return err
	}
	for range b.rooms {
		room, err := b.roomOf(ctx, users)
		if err != nil {
			return err
		}
		for j := range 10 {
			if _, err := users[j%2].say(ctx, room, fmt.Sprint(j)); err != nil {
				return err
			}
		}
	}
	const syncs = 50
	m := b.measure("initial")
	for range syncs {
		start := time.Now()
		answer, err := users[1].sync(ctx, "", 0)
		if err != nil {
			return err
		}
		m.add(time.Since(start))
		if got := len(answer.Rooms.Join); got != b.rooms {
			return fmt.Errorf("the initial sync has %d rooms of %d", got, b.rooms)
		}
	}
	m.report(syncs, fmt.Sprintf("syncs of %d rooms", b.rooms))
	return nil
}

// idle: polls that find nothing new.
func (b *bench) idle(ctx context.Context) error {
	users, err := b.people(ctx, b.w1, "idle", 1)
	if err != nil {
		return err
	}
	room, err := b.roomOf(ctx, users)
	if err != nil {
		return err
	}
	r, err := readerOf(ctx, users[0], room)
	if err != nil {
		return err
	}
	const polls = 2000
	m := b.measure("idle")
	for range polls {
		start := time.Now()
		answer, err := r.sync(ctx, r.since, 0)
		if err != nil {
			return err
		}
		m.add(time.Since(start))
		r.since = answer.NextBatch
	}
	m.report(polls, "polls")
	return nil
}

// media: voice-sized files (a minute is 183 kB) up and down again.
func (b *bench) media(ctx context.Context) error {
	users, err := b.people(ctx, b.w1, "media", 1)
	if err != nil {
		return err
	}
	const files = 100
	uris, contents := make([]string, files), make([][]byte, files)
	up := b.measure("upload")
	for i := range files {
		contents[i] = make([]byte, 183_000)
		if _, err := rand.Read(contents[i]); err != nil {
			return err
		}
		var answer struct {
			ContentURI string `json:"content_uri"`
		}
		start := time.Now()
		if err := b.w1.call(ctx, users[0].Token, "POST", "/_matrix/media/v3/upload?filename=voice.ogg", contents[i], &answer); err != nil {
			return err
		}
		up.add(time.Since(start))
		uris[i] = answer.ContentURI
	}
	up.report(files, "uploads of 183 kB")
	down := b.measure("download")
	for i, uri := range uris {
		var got []byte
		start := time.Now()
		path := "/_matrix/client/v1/media/download/" + strings.TrimPrefix(uri, "mxc://")
		if err := b.w1.call(ctx, users[0].Token, "GET", path, nil, &got); err != nil {
			return err
		}
		down.add(time.Since(start))
		if !bytes.Equal(got, contents[i]) {
			return fmt.Errorf("%s came back different", uri)
		}
	}
	down.report(files, "downloads")
	return nil
}

// federation: how long a message takes to the /sync of a user on the other server, and back.
func (b *bench) federation(ctx context.Context) error {
	alice, err := b.w1.register(ctx, "fed"+b.run)
	if err != nil {
		return err
	}
	bob, err := b.w2.register(ctx, "fed"+b.run)
	if err != nil {
		return err
	}
	room, err := alice.createRoom(ctx, "public_chat")
	if err != nil {
		return err
	}
	_, via, _ := strings.Cut(alice.ID, ":")
	if err := bob.join(ctx, room, via); err != nil {
		return err
	}
	for _, direction := range []struct {
		name     string
		from, to *benchUser
	}{{"there", alice, bob}, {"back", bob, alice}} {
		r, err := readerOf(ctx, direction.to, room)
		if err != nil {
			return err
		}
		var sent []string
		const messages = 100
		m := b.measure(direction.name)
		for i := range messages {
			text := fmt.Sprintf("%s %d", direction.name, i)
			start := time.Now()
			done := make(chan error, 1)
			go func() { done <- r.follow(ctx, 1, nil) }()
			if _, err := direction.from.say(ctx, room, text); err != nil {
				return err
			}
			if err := <-done; err != nil {
				return err
			}
			m.add(time.Since(start))
			sent = append(sent, text)
		}
		m.report(messages, "over federation")
		if err := r.check(sent); err != nil {
			return err
		}
	}
	return nil
}
