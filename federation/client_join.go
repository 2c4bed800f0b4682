package federation

import (
	"context"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// SendJoin: see room.Remote. Spec v1.19 server-server-api/#put_matrixfederationv2send_joinroomideventid
func (c *Client) SendJoin(ctx context.Context, server matrix.ServerName, id matrix.RoomID, event matrix.EventID, join stdjson.RawMessage, omitMembers bool, events room.EventSink) (answer room.SendJoinResponse, err error) {
	path := escape(v2+"/send_join", string(id), string(event))
	if omitMembers {
		path += "?omit_members=true"
	}
	err = c.readLarge(ctx, request{server: server, method: http.MethodPut, path: path, body: join, urgent: true}, readSendJoin(&answer, events))
	return answer, err
}

// readSendJoin reads the parts of the answer to send_join. The events go to events one by one: a large room's do not fit into memory several times.
func readSendJoin(answer *room.SendJoinResponse, events room.EventSink) func(d *jsontext.Decoder, name string) error {
	return func(d *jsontext.Decoder, name string) error {
		switch name {
		case "state":
			return readEvents(d, true, events)
		case "auth_chain":
			return readEvents(d, false, events)
		case "event":
			return json.UnmarshalDecode(d, &answer.Event, lax)
		case "members_omitted":
			return json.UnmarshalDecode(d, &answer.MembersOmitted, lax)
		case "servers_in_room":
			return json.UnmarshalDecode(d, &answer.ServersInRoom, lax)
		}
		return d.SkipValue()
	}
}

// readLarge makes a request whose answer may hold the state of a large room, and reads the answer as it comes in: member is called for each member
// of the object and reads its value.
func (c *Client) readLarge(ctx context.Context, q request, member func(d *jsontext.Decoder, name string) error) error {
	q.timeout, q.limit = c.o.Config.JoinTimeout, c.o.Config.MaxResponseBytes
	return c.read(ctx, q, func(body io.Reader, limit int64) error {
		limited := &io.LimitedReader{R: body, N: limit + 1}
		err := readObject(limited, member)
		if limited.N <= 0 {
			err = fmt.Errorf("longer than %d bytes", limit)
		}
		return err
	})
}

// readObject reads one JSON object, and nothing after it.
func readObject(body io.Reader, member func(d *jsontext.Decoder, name string) error) error {
	d := jsontext.NewDecoder(body, lax)
	if start, err := d.ReadToken(); err != nil {
		return err
	} else if start.Kind() != '{' {
		return errors.New("the answer is not an object")
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return err
		}
		if err := member(d, name.String()); err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return errors.New("something follows on the answer")
	}
	return nil
}

// readEvents reads a list of events; null is an empty one.
func readEvents(d *jsontext.Decoder, inState bool, events room.EventSink) error {
	start, err := d.ReadToken()
	if err != nil || start.Kind() == 'n' {
		return err
	}
	if start.Kind() != '[' {
		return errors.New("a list of events is something else")
	}
	for d.PeekKind() != ']' {
		raw, err := d.ReadValue()
		if err == nil {
			err = events(inState, stdjson.RawMessage(raw))
		}
		if err != nil {
			return err
		}
	}
	_, err = d.ReadToken()
	return err
}
