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
	err = c.read(ctx, request{server: server, method: http.MethodPut, path: path, body: join, urgent: true,
		timeout: c.o.Config.JoinTimeout, limit: c.o.Config.MaxResponseBytes}, func(body io.Reader, limit int64) error {
		limited := &io.LimitedReader{R: body, N: limit + 1}
		err := readSendJoin(limited, &answer, events)
		if limited.N <= 0 {
			err = fmt.Errorf("longer than %d bytes", limit)
		}
		return err
	})
	return answer, err
}

// readSendJoin reads the answer to send_join. The events go to events one by one: a large room's do not fit into memory several times.
func readSendJoin(body io.Reader, answer *room.SendJoinResponse, events room.EventSink) error {
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
		switch name.String() {
		case "state":
			err = readEvents(d, true, events)
		case "auth_chain":
			err = readEvents(d, false, events)
		case "event":
			err = json.UnmarshalDecode(d, &answer.Event, lax)
		case "members_omitted":
			err = json.UnmarshalDecode(d, &answer.MembersOmitted, lax)
		case "servers_in_room":
			err = json.UnmarshalDecode(d, &answer.ServersInRoom, lax)
		default:
			err = d.SkipValue()
		}
		if err != nil {
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
