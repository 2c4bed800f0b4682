package federation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

const (
	v1 = "/_matrix/federation/v1"
	v2 = "/_matrix/federation/v2"
)

// MakeJoin: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1make_joinroomiduserid
func (c *Client) MakeJoin(ctx context.Context, server matrix.ServerName, id matrix.RoomID, user matrix.UserID, versions []string) (room.MakeResponse, error) {
	return c.makeMembership(ctx, server, escape(v1+"/make_join", string(id), string(user)), versions)
}

// MakeLeave: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1make_leaveroomiduserid
func (c *Client) MakeLeave(ctx context.Context, server matrix.ServerName, id matrix.RoomID, user matrix.UserID) (room.MakeResponse, error) {
	return c.makeMembership(ctx, server, escape(v1+"/make_leave", string(id), string(user)), nil)
}

// MakeKnock: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1make_knockroomiduserid
func (c *Client) MakeKnock(ctx context.Context, server matrix.ServerName, id matrix.RoomID, user matrix.UserID, versions []string) (room.MakeResponse, error) {
	return c.makeMembership(ctx, server, escape(v1+"/make_knock", string(id), string(user)), versions)
}

func (c *Client) makeMembership(ctx context.Context, server matrix.ServerName, path string, versions []string) (answer room.MakeResponse, err error) {
	if len(versions) > 0 {
		path += "?" + url.Values{"ver": versions}.Encode()
	}
	err = c.call(ctx, request{server: server, method: http.MethodGet, path: path, urgent: true}, &answer)
	if err == nil && len(answer.Event) == 0 {
		err = errors.New("the answer has no event")
	}
	return answer, err
}

// SendLeave: see room.Remote. Spec v1.19 server-server-api/#put_matrixfederationv2send_leaveroomideventid
func (c *Client) SendLeave(ctx context.Context, server matrix.ServerName, id matrix.RoomID, event matrix.EventID, leave json.RawMessage) error {
	return c.call(ctx, request{server: server, method: http.MethodPut, path: escape(v2+"/send_leave", string(id), string(event)), body: leave, urgent: true}, nil)
}

// SendKnock: see room.Remote. Spec v1.19 server-server-api/#put_matrixfederationv1send_knockroomideventid
func (c *Client) SendKnock(ctx context.Context, server matrix.ServerName, id matrix.RoomID, event matrix.EventID, knock json.RawMessage) ([]json.RawMessage, error) {
	var answer struct {
		State []json.RawMessage `json:"knock_room_state"`
	}
	err := c.call(ctx, request{server: server, method: http.MethodPut, path: escape(v1+"/send_knock", string(id), string(event)), body: knock, urgent: true}, &answer)
	return answer.State, err
}

// Invite: see room.Remote. Spec v1.19 server-server-api/#put_matrixfederationv2inviteroomideventid
func (c *Client) Invite(ctx context.Context, server matrix.ServerName, id matrix.RoomID, event matrix.EventID, invite room.InviteRequest) (json.RawMessage, error) {
	body, err := encode(invite)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Event json.RawMessage `json:"event"`
	}
	err = c.call(ctx, request{server: server, method: http.MethodPut, path: escape(v2+"/invite", string(id), string(event)), body: body, urgent: true}, &answer)
	if (invite.RoomVersion == "1" || invite.RoomVersion == "2") && unknownRoute(err) {
		return c.inviteV1(ctx, server, id, event, invite)
	}
	if err == nil && len(answer.Event) == 0 {
		err = errors.New("the answer has no event")
	}
	return answer.Event, err
}

// inviteV1: the body is the event, with the room's state in unsigned; the answer is [200, {"event": …}].
// Spec v1.19 server-server-api/#put_matrixfederationv1inviteroomideventid
func (c *Client) inviteV1(ctx context.Context, server matrix.ServerName, id matrix.RoomID, event matrix.EventID, invite room.InviteRequest) (json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(invite.Event, &fields); err != nil {
		return nil, err
	}
	unsigned, err := encode(map[string]any{"invite_room_state": invite.InviteRoomState})
	if err != nil {
		return nil, err
	}
	fields["unsigned"] = unsigned
	body, err := encode(fields)
	if err != nil {
		return nil, err
	}
	var answer []json.RawMessage
	if err := c.call(ctx, request{server: server, method: http.MethodPut, path: escape(v1+"/invite", string(id), string(event)), body: body, urgent: true}, &answer); err != nil {
		return nil, err
	}
	var signed struct {
		Event json.RawMessage `json:"event"`
	}
	if len(answer) != 2 {
		return nil, errors.New("the answer is not a pair")
	}
	err = json.Unmarshal(answer[1], &signed)
	return signed.Event, err
}

// unknownRoute reports whether the other server does not know the endpoint.
func unknownRoute(err error) bool {
	var e *matrix.Error
	return errors.As(err, &e) && (e.Code == "M_UNRECOGNIZED" || e.Status == http.StatusNotFound && e.Code == "M_NOT_FOUND")
}

// ExchangeThirdPartyInvite: see room.Remote.
// Spec v1.19 server-server-api/#put_matrixfederationv1exchange_third_party_inviteroomid
func (c *Client) ExchangeThirdPartyInvite(ctx context.Context, server matrix.ServerName, id matrix.RoomID, member json.RawMessage) error {
	return c.call(ctx, request{server: server, method: http.MethodPut, path: escape(v1+"/exchange_third_party_invite", string(id)), body: member, urgent: true}, nil)
}

// Backfill: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1backfillroomid
func (c *Client) Backfill(ctx context.Context, server matrix.ServerName, id matrix.RoomID, from []matrix.EventID, limit int) ([]json.RawMessage, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	for _, e := range from {
		query.Add("v", string(e))
	}
	return c.pdus(ctx, request{server: server, method: http.MethodGet, path: escape(v1+"/backfill", string(id)) + "?" + query.Encode()})
}

// pdus asks for what is answered like a transaction.
func (c *Client) pdus(ctx context.Context, q request) ([]json.RawMessage, error) {
	var answer struct {
		PDUs []json.RawMessage `json:"pdus"`
	}
	err := c.call(ctx, q, &answer)
	return answer.PDUs, err
}

// MissingEvents: see room.Remote. Spec v1.19 server-server-api/#post_matrixfederationv1get_missing_eventsroomid
func (c *Client) MissingEvents(ctx context.Context, server matrix.ServerName, id matrix.RoomID, query room.MissingEventsRequest) ([]json.RawMessage, error) {
	body, err := encode(query)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Events []json.RawMessage `json:"events"`
	}
	err = c.call(ctx, request{server: server, method: http.MethodPost, path: escape(v1+"/get_missing_events", string(id)), body: body}, &answer)
	return answer.Events, err
}

// Event: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1eventeventid
func (c *Client) Event(ctx context.Context, server matrix.ServerName, event matrix.EventID) (json.RawMessage, error) {
	pdus, err := c.pdus(ctx, request{server: server, method: http.MethodGet, path: escape(v1+"/event", string(event))})
	if err != nil {
		return nil, err
	}
	if len(pdus) != 1 {
		return nil, errors.New("the answer has not exactly one event")
	}
	return pdus[0], nil
}

// EventAuth: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1event_authroomideventid
func (c *Client) EventAuth(ctx context.Context, server matrix.ServerName, id matrix.RoomID, event matrix.EventID) ([]json.RawMessage, error) {
	var answer struct {
		AuthChain []json.RawMessage `json:"auth_chain"`
	}
	err := c.call(ctx, request{server: server, method: http.MethodGet, path: escape(v1+"/event_auth", string(id), string(event))}, &answer)
	return answer.AuthChain, err
}

// State: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1stateroomid
func (c *Client) State(ctx context.Context, server matrix.ServerName, id matrix.RoomID, event matrix.EventID, events room.EventSink) error {
	return c.readLarge(ctx, request{server: server, method: http.MethodGet,
		path: escape(v1+"/state", string(id)) + "?" + url.Values{"event_id": {string(event)}}.Encode()},
		func(d *jsontext.Decoder, name string) error {
			switch name {
			case "pdus":
				return readEvents(d, true, events)
			case "auth_chain":
				return readEvents(d, false, events)
			}
			return d.SkipValue()
		})
}

// StateIDs: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1state_idsroomid
func (c *Client) StateIDs(ctx context.Context, server matrix.ServerName, id matrix.RoomID, event matrix.EventID) (answer room.StateIDsResponse, err error) {
	err = c.call(ctx, request{server: server, method: http.MethodGet,
		path:    escape(v1+"/state_ids", string(id)) + "?" + url.Values{"event_id": {string(event)}}.Encode(),
		timeout: c.o.Config.JoinTimeout, limit: c.o.Config.MaxResponseBytes}, &answer)
	return answer, err
}

// TimestampToEvent: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1timestamp_to_eventroomid
func (c *Client) TimestampToEvent(ctx context.Context, server matrix.ServerName, id matrix.RoomID, ts int64, backwards bool) (answer room.TimestampToEventResponse, err error) {
	dir := "f"
	if backwards {
		dir = "b"
	}
	query := url.Values{"ts": {strconv.FormatInt(ts, 10)}, "dir": {dir}}
	err = c.call(ctx, request{server: server, method: http.MethodGet, path: escape(v1+"/timestamp_to_event", string(id)) + "?" + query.Encode(),
		timeout: 10 * time.Second}, &answer)
	return answer, err
}

// ResolveAlias: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1querydirectory
func (c *Client) ResolveAlias(ctx context.Context, server matrix.ServerName, alias matrix.RoomAlias) (answer room.AliasResponse, err error) {
	err = c.call(ctx, request{server: server, method: http.MethodGet, path: v1 + "/query/directory?" + url.Values{"room_alias": {string(alias)}}.Encode(), urgent: true}, &answer)
	return answer, err
}

// PublicRooms: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1publicrooms
func (c *Client) PublicRooms(ctx context.Context, server matrix.ServerName, query room.PublicRoomsRequest) (answer room.PublicRoomsResponse, err error) {
	q := request{server: server, method: http.MethodGet, path: v1 + "/publicRooms", urgent: true}
	if query.Filter != nil {
		q.method = http.MethodPost
		if q.body, err = encode(query); err != nil {
			return answer, err
		}
	} else {
		values := url.Values{}
		if query.Limit > 0 {
			values.Set("limit", strconv.Itoa(query.Limit))
		}
		if query.Since != "" {
			values.Set("since", query.Since)
		}
		if query.IncludeAllNetworks {
			values.Set("include_all_networks", "true")
		}
		if query.ThirdPartyInstanceID != "" {
			values.Set("third_party_instance_id", query.ThirdPartyInstanceID)
		}
		if len(values) > 0 {
			q.path += "?" + values.Encode()
		}
	}
	err = c.call(ctx, q, &answer)
	return answer, err
}

// AskPolicyServer: see room.Remote. Spec v1.19 server-server-api/#post_matrixpolicyv1sign
func (c *Client) AskPolicyServer(ctx context.Context, server matrix.ServerName, event json.RawMessage) (answer map[matrix.ServerName]map[matrix.KeyID]string, err error) {
	err = c.call(ctx, request{server: server, method: http.MethodPost, path: "/_matrix/policy/v1/sign", body: event, limit: maxKeyAnswer, timeout: 10 * time.Second}, &answer)
	return answer, err
}

// Hierarchy: see room.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1hierarchyroomid
func (c *Client) Hierarchy(ctx context.Context, server matrix.ServerName, id matrix.RoomID, suggestedOnly bool) (answer room.HierarchyResponse, err error) {
	err = c.call(ctx, request{server: server, method: http.MethodGet,
		path: escape(v1+"/hierarchy", string(id)) + "?suggested_only=" + strconv.FormatBool(suggestedOnly), timeout: 10 * time.Second}, &answer)
	return answer, err
}
