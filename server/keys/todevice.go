package keys

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	maxMessages     = 10000 // to-device messages in one request
	maxTypeBytes    = 255
	maxEDUBytes     = 48 * 1024 // of messages in one EDU; one larger message goes alone
	maxMessageIDLen = 32 * 4
)

// SendToDevice is PUT /sendToDevice/{eventType}/{txnId}: messages by user and device, device "*" is all of them.
// Idempotence by transaction ID is the caller's. Errors: M_BAD_JSON, M_TOO_LARGE, M_INVALID_PARAM.
func (k *Keys) SendToDevice(ctx context.Context, sender matrix.UserID, typ string, messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage) error {
	if err := checkType(typ); err != nil {
		return err
	}
	s := storage.SentToDevice{NowMS: k.now().UnixMilli(), MaxInbox: k.cfg.MaxInbox}
	edus := eduWriter{sender: sender, typ: typ}
	count := 0
	for user, devices := range messages {
		if _, err := matrix.ParseUserID(string(user)); err != nil {
			return err
		}
		if count += len(devices); count > maxMessages {
			return matrix.InvalidParam("more than %d messages in one request", maxMessages)
		}
		for device, content := range devices {
			if err := k.checkContent(content); err != nil {
				return err
			}
			if user.Server() == k.server {
				s.Local = append(s.Local, storage.ToDevice{User: user, Device: device, Event: toDeviceEvent(sender, typ, content)})
			} else if k.remote != nil {
				edus.add(user, device, content)
			}
		}
	}
	var err error
	if s.Remote, err = edus.finish(); err != nil || len(s.Local)+len(s.Remote) == 0 {
		return err
	}
	return k.db.SendToDevice(ctx, s)
}

func checkType(typ string) error {
	if typ == "" || len(typ) > maxTypeBytes || !utf8.ValidString(typ) {
		return matrix.InvalidParam("the event type must be 1 to %d bytes of text", maxTypeBytes)
	}
	return nil
}

func (k *Keys) checkContent(content json.RawMessage) error {
	if len(content) > k.cfg.MaxToDeviceBytes {
		return matrix.TooLarge("a to-device message must not be larger than %d bytes", k.cfg.MaxToDeviceBytes)
	}
	if len(content) == 0 || content[0] != '{' {
		return matrix.BadJSON("a message must be an object")
	}
	return nil
}

func toDeviceEvent(sender matrix.UserID, typ string, content json.RawMessage) json.RawMessage {
	b := make([]byte, 0, len(content)+len(sender)+len(typ)+40)
	b = append(b, `{"content":`...)
	b = append(b, content...)
	b = append(b, `,"sender":`...)
	b = matrix.AppendJSONString(b, string(sender))
	b = append(b, `,"type":`...)
	b = matrix.AppendJSONString(b, typ)
	return append(b, '}')
}

// directToDevice is the content of the EDU. Spec v1.19 server-server-api/#send-to-device-messaging
type directToDevice struct {
	Sender    matrix.UserID                                         `json:"sender"`
	Type      string                                                `json:"type"`
	MessageID string                                                `json:"message_id"`
	Messages  map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"messages"`
}

// eduWriter packs messages into as few EDUs per server as their size allows.
type eduWriter struct {
	sender matrix.UserID
	typ    string
	open   map[matrix.ServerName]*directToDevice
	size   map[matrix.ServerName]int
	done   []storage.RemoteToDevice
	err    error
}

func (w *eduWriter) add(user matrix.UserID, device matrix.DeviceID, content json.RawMessage) {
	server := user.Server()
	if w.open == nil {
		w.open, w.size = map[matrix.ServerName]*directToDevice{}, map[matrix.ServerName]int{}
	}
	if w.size[server] > 0 && w.size[server]+len(content) > maxEDUBytes {
		w.flush(server)
	}
	e := w.open[server]
	if e == nil {
		e = &directToDevice{Sender: w.sender, Type: w.typ, MessageID: rand.Text(), Messages: map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{}}
		w.open[server] = e
	}
	if e.Messages[user] == nil {
		e.Messages[user] = map[matrix.DeviceID]json.RawMessage{}
	}
	e.Messages[user][device] = content
	w.size[server] += len(content) + len(user) + len(device)
}

func (w *eduWriter) flush(server matrix.ServerName) {
	content, err := json.Marshal(w.open[server])
	w.err = errors.Join(w.err, err)
	w.done = append(w.done, storage.RemoteToDevice{Server: server, Content: content})
	delete(w.open, server)
	delete(w.size, server)
}

func (w *eduWriter) finish() ([]storage.RemoteToDevice, error) {
	for server := range w.open {
		w.flush(server)
	}
	if w.err != nil {
		return nil, matrix.BadJSON("a message is not valid JSON")
	}
	return w.done, nil
}

// ToDeviceMessage waits for a device: Event is {"type", "sender", "content"}.
type ToDeviceMessage = storage.InboxMessage

// errNotEmpty keeps an inbox with messages out of the memo of empty ones.
var errNotEmpty = errors.New("inbox is not empty")

// ToDevice deletes the messages up to and including acked, which the device has confirmed by presenting a newer sync
// token, and returns at most limit messages with positions in (acked, upTo]. No query when nothing waits.
func (k *Keys) ToDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, acked, upTo int64, limit int) ([]ToDeviceMessage, error) {
	key := deviceKey{user, device}
	_, err := k.emptyInbox.Load(key, func() (struct{}, error) {
		empty, err := k.db.InboxEmpty(ctx, user, device)
		if err == nil && !empty {
			err = errNotEmpty
		}
		return struct{}{}, err
	})
	if err == nil {
		return nil, nil
	}
	if !errors.Is(err, errNotEmpty) {
		return nil, err
	}
	if acked > 0 {
		old, err := k.db.Inbox(ctx, user, device, 0, acked, 1)
		if err != nil {
			return nil, err
		}
		if len(old) > 0 {
			if err := k.db.DeleteInbox(ctx, user, device, acked); err != nil {
				return nil, err
			}
		}
	}
	return k.db.Inbox(ctx, user, device, acked, upTo, limit)
}

// ReceiveDirectToDevice takes an m.direct_to_device EDU. A message_id that origin has sent before is passed over.
// A *matrix.Error means that the EDU is not valid; retrying does not help.
func (k *Keys) ReceiveDirectToDevice(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var e directToDevice
	if err := json.Unmarshal(content, &e); err != nil {
		return matrix.BadJSON("m.direct_to_device has members of the wrong type")
	}
	switch {
	case e.Sender.Server() != origin:
		return matrix.Forbidden("the sender is not a user of %s", origin)
	case e.MessageID == "" || len(e.MessageID) > maxMessageIDLen || strings.Contains(e.MessageID, "\x00") || !utf8.ValidString(e.MessageID):
		return matrix.InvalidParam("message_id is not valid")
	}
	if _, err := matrix.ParseUserID(string(e.Sender)); err != nil {
		return err
	}
	if err := checkType(e.Type); err != nil {
		return err
	}
	s := storage.SentToDevice{Origin: origin, MessageID: e.MessageID, NowMS: k.now().UnixMilli(), MaxInbox: k.cfg.MaxInbox}
	for user, devices := range e.Messages {
		if user.Server() != k.server {
			continue
		}
		for device, message := range devices {
			if k.checkContent(message) != nil || len(s.Local) == maxMessages {
				continue
			}
			s.Local = append(s.Local, storage.ToDevice{User: user, Device: device, Event: toDeviceEvent(e.Sender, e.Type, message)})
		}
	}
	if len(s.Local) == 0 {
		return nil
	}
	return k.db.SendToDevice(ctx, s)
}
