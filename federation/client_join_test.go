package federation

import (
	stdjson "encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

func TestAnswerToSendJoinIsReadInAnyOrder(t *testing.T) {
	for name, body := range map[string]string{
		"state first": `{"origin":"one","state":[{"a":1},{"b":[2]}],"auth_chain":[{"c":3}],"event":{"d":4},"members_omitted":true,"servers_in_room":["one","two"]}`,
		"chain first": `{"servers_in_room":["one","two"], "members_omitted":true, "event":{"d":4}, "auth_chain":[{"c":3}] , "state":[ {"a":1},{"b":[2]} ], "more":{"state":[9]}}`,
	} {
		var state, chain []string
		var answer room.SendJoinResponse
		err := readObject(strings.NewReader(body), readSendJoin(&answer, func(inState bool, raw stdjson.RawMessage) error {
			if inState {
				state = append(state, string(raw))
			} else {
				chain = append(chain, string(raw))
			}
			return nil
		}))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff([][]string{{`{"a":1}`, `{"b":[2]}`}, {`{"c":3}`}}, [][]string{state, chain}); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		want := room.SendJoinResponse{Event: stdjson.RawMessage(`{"d":4}`), MembersOmitted: true, ServersInRoom: []matrix.ServerName{"one", "two"}}
		if diff := cmp.Diff(want, answer); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestABadAnswerToSendJoinIsAnError(t *testing.T) {
	refuse := errors.New("no more")
	for body, want := range map[string]string{
		``:                          "EOF",
		`[]`:                        "not an object",
		`{"state":{}}`:              "something else",
		`{"state":[{}`:              "unexpected EOF",
		`{"state":[{}]`:             "unexpected EOF",
		`{"state":[{},]}`:           "",
		`{"state":[]} {}`:           "follows",
		`{"members_omitted":"yes"}`: "",
		`{"state":[{}]}`:            "no more",
	} {
		var answer room.SendJoinResponse
		err := readObject(strings.NewReader(body), readSendJoin(&answer, func(bool, stdjson.RawMessage) error { return refuse }))
		if body != `{"state":[{}]}` && errors.Is(err, refuse) {
			err = readObject(strings.NewReader(body), readSendJoin(&answer, func(bool, stdjson.RawMessage) error { return nil }))
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", body, err, want)
		}
	}
	for _, body := range []string{`{}`, `{"state":null,"auth_chain":null}`, `{"state":[],"event":null}`} {
		if err := readObject(strings.NewReader(body), readSendJoin(&room.SendJoinResponse{}, nil)); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
}
