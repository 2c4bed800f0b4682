package federation

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"parley.im/parley/server/matrix"
)

func TestAPolicyServerIsAskedToSign(t *testing.T) {
	a := newAuthority(t)
	alice, policy := newTestServer(t, a), newTestServer(t, a)
	refuse := false
	policy.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case r.Method != http.MethodPost || r.URL.Path != "/_matrix/policy/v1/sign" || string(body) != `{"type":"m.room.message"}` || r.Header.Get("Authorization") == "":
			t.Errorf("asked %s %s: %s", r.Method, r.URL.Path, body)
		case refuse:
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"errcode":"M_FORBIDDEN","error":"spam"}`)
		default:
			_, _ = io.WriteString(w, `{"policy.example":{"ed25519:policy_server":"abc"}}`)
		}
	}))
	event := json.RawMessage(`{"type":"m.room.message"}`)
	answer, err := alice.AskPolicyServer(context.Background(), policy.name, event)
	if err != nil || answer["policy.example"][matrix.PolicyKeyID] != "abc" {
		t.Errorf("got %v, %v", answer, err)
	}
	refuse = true
	if _, err := alice.AskPolicyServer(context.Background(), policy.name, event); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("got %v, want M_FORBIDDEN", err)
	}
}
