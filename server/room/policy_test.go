package room

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// policyWorld is a room of one and two that uses server three as its policy server, which refuses what says "spam".
type policyWorld struct {
	*world
	one, two *at
	room     matrix.RoomID
	key      *matrix.SigningKey
	asked    atomic.Int32 // asked for several events at once
}

func newPolicyWorld(t *testing.T, version string) *policyWorld {
	t.Helper()
	w := &policyWorld{world: newWorld(t, "one", "two", "three")}
	w.one, w.two = w.at("one"), w.at("two")
	var err error
	if w.key, err = matrix.NewSigningKey(matrix.PolicyKeyID, []byte("a seed for the policy server's  !")[:ed25519.SeedSize]); err != nil {
		t.Fatal(err)
	}
	w.policy = func(raw json.RawMessage) (map[matrix.ServerName]map[matrix.KeyID]string, error) {
		w.asked.Add(1)
		if strings.Contains(string(raw), "spam") {
			return nil, matrix.NewError(400, "M_FORBIDDEN", "this looks like spam")
		}
		return w.sign(raw, version), nil
	}
	w.room = w.one.newRoom("@alice:one", version, "public")
	w.two.join(w.room, "@bob:two", "one")
	w.three().join(w.room, "@policy:three", "one")
	w.two.get("one", w.one.snap(w.room).Tip...)
	w.set(w.policyContent())
	return w
}

func (w *policyWorld) three() *at { return w.at("three") }

func (w *policyWorld) policyContent() string {
	return fmt.Sprintf(`{"via":"three","public_keys":{"ed25519":%q}}`, w.key.Public())
}

// set names the policy server, on both servers.
func (w *policyWorld) set(content string) {
	w.t.Helper()
	w.two.get("one", w.one.set(w.room, "@alice:one", matrix.TypePolicy, "", content))
}

func (w *policyWorld) sign(raw json.RawMessage, version string) map[matrix.ServerName]map[matrix.KeyID]string {
	e, err := matrix.ParseEvent(raw, matrix.LookupRoomVersion(version))
	if err != nil {
		w.t.Error(err)
		return nil
	}
	var signed struct {
		Signatures map[matrix.ServerName]map[matrix.KeyID]string `json:"signatures"`
	}
	if err := json.Unmarshal(e.WithSignature("three", w.key).JSON(), &signed); err != nil {
		w.t.Error(err)
	}
	return map[matrix.ServerName]map[matrix.KeyID]string{"three": signed.Signatures["three"]}
}

func (w *policyWorld) send(from *at, user matrix.UserID, body string) (*storage.Event, error) {
	id, err := from.Send(context.Background(), SendRequest{Room: w.room, Sender: user, Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"` + body + `","msgtype":"m.text"}`)})
	if err != nil {
		return nil, err
	}
	return from.o.DB.EventByID(context.Background(), id)
}

func TestThePolicyServerSignsWhatIsSent(t *testing.T) {
	for _, version := range versionsToTest(t) {
		t.Run(version, func(t *testing.T) {
			w := newPolicyWorld(t, version)
			w.asked.Store(0)
			e, err := w.send(w.one, "@alice:one", "hello")
			if err != nil {
				t.Fatal(err)
			}
			if p := w.one.snap(w.room).Policy; p == nil || !p.Recommends(e.Event) {
				t.Errorf("the event is not signed: %s", e.JSON())
			}
			w.two.get("one", e)
			if diff := cmp.Diff([]string{"hello"}, w.two.timeline(w.room)); diff != "" {
				t.Error(diff)
			}
			if got := w.asked.Load(); got != 1 {
				t.Errorf("the policy server was asked %d times, want once: the receiver finds the signature", got)
			}
			if _, err := w.send(w.one, "@alice:one", "spam"); matrix.ErrorCode(err) != "M_FORBIDDEN" || !strings.Contains(err.Error(), "looks like spam") {
				t.Errorf("spam: got %v, want what the policy server says", err)
			}
			if diff := cmp.Diff([]string{"hello"}, w.one.timeline(w.room)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheSecondAttemptWithATransactionIDIsTheSameEvent(t *testing.T) {
	w := newPolicyWorld(t, "11")
	r := SendRequest{Room: w.room, Sender: "@alice:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"once"}`), Device: "D", TxnID: "t"}
	first, err := w.one.Send(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := w.one.Send(context.Background(), r); err != nil || second != first {
		t.Errorf("got %s (%v), want %s", second, err, first)
	}
}

func TestWhatThePolicyServerDoesNotSignIsSoftFailed(t *testing.T) {
	w := newPolicyWorld(t, "11")
	tip := w.one.snap(w.room).Tip[0]
	unsigned := w.one.forge(tip, matrix.Builder{Sender: "@alice:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"not asked"}`)})
	spam := w.one.forge(tip, matrix.Builder{Sender: "@alice:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"spam"}`)})
	other, err := matrix.NewSigningKey(matrix.PolicyKeyID, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	forged := w.one.forge(tip, matrix.Builder{Sender: "@alice:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"spam, signed by another"}`)}).WithSignature("three", other)
	w.asked.Store(0)
	w.two.getRaw("one", unsigned, spam, forged)
	if diff := cmp.Diff([]string{"not asked"}, w.two.timeline(w.room)); diff != "" {
		t.Error(diff)
	}
	if got := w.asked.Load(); got != 3 {
		t.Errorf("the policy server was asked %d times for 3 events", got)
	}
	for _, e := range []*matrix.Event{spam, forged} {
		if got := w.two.flags(e.ID()); got != storage.SoftFailed {
			t.Errorf("flags %d, want soft-failed", got)
		}
	}
	stored, err := w.two.o.DB.EventByID(context.Background(), unsigned.ID())
	if err != nil || !w.two.snap(w.room).Policy.Recommends(stored.Event) {
		t.Errorf("what was signed on our asking is stored without that: %v", err)
	}
}

func TestASilentPolicyServerLetsNothingThroughButIsNotPestered(t *testing.T) {
	w := newPolicyWorld(t, "11")
	w.fault["policy three"] = func() error { return errNoAnswer }
	before := w.count("policy three")
	for range 5 {
		if _, err := w.send(w.one, "@alice:one", "hello"); matrix.ErrorCode(err) != "M_UNKNOWN" {
			t.Errorf("got %v, want M_UNKNOWN", err)
		}
	}
	if got := w.count("policy three") - before; got != 1 {
		t.Errorf("it was asked %d times", got)
	}
	// Who has the power takes the policy server away, for which it need not be asked.
	w.set(`{}`)
	e, err := w.send(w.one, "@alice:one", "free again")
	if err != nil {
		t.Fatal(err)
	}
	w.two.get("one", e)
	if diff := cmp.Diff([]string{"free again"}, w.two.timeline(w.room)); diff != "" {
		t.Error(diff)
	}
}

// Who asks for an event to be taken may go away before the policy server has answered, and come again.
func TestAQuestionThatWasBrokenOffIsAskedAgain(t *testing.T) {
	w := newPolicyWorld(t, "11")
	tip := w.one.snap(w.room).Tip[0]
	e := w.one.forge(tip, matrix.Builder{Sender: "@alice:one", Type: matrix.TypeMessage, Content: json.RawMessage(`{"body":"hello"}`)})
	ctx, cancel := context.WithCancel(context.Background())
	w.fault["policy three"] = func() error {
		cancel()
		return ctx.Err()
	}
	w.two.Receive(ctx, "one", []json.RawMessage{e.JSON()})
	delete(w.fault, "policy three")
	w.two.getRaw("one", e)
	if diff := cmp.Diff([]string{"hello"}, w.two.timeline(w.room)); diff != "" {
		t.Error(diff)
	}
}

func TestAPolicyServerThatIsNotInTheRoomIsNotAsked(t *testing.T) {
	w := newPolicyWorld(t, "11")
	leave := w.three().set(w.room, "@policy:three", matrix.TypeMember, "@policy:three", `{"membership":"leave"}`)
	w.one.get("three", leave)
	w.two.get("one", w.one.snap(w.room).Tip...)
	before := w.count("policy three")
	if _, err := w.send(w.one, "@alice:one", "spam"); err != nil {
		t.Error(err)
	}
	for _, content := range []string{`{"via":"two"}`, `{"via":"two","public_keys":{}}`, `{"via":"two","public_keys":{"ed25519":5}}`, `{"via":5,"public_keys":{"ed25519":"x"}}`, `{"public_keys":{"ed25519":"x"}}`} {
		w.set(content)
		if p := w.one.snap(w.room).policyServer(); p != nil {
			t.Errorf("%s makes %s the policy server", content, p.Server)
		}
	}
	if got := w.count("policy three") - before; got != 0 {
		t.Errorf("it was asked %d times", got)
	}
}

func TestMembershipsGoThroughThePolicyServer(t *testing.T) {
	w := newPolicyWorld(t, "11")
	ctx := context.Background()
	w.one.o.Profile = nil
	if _, err := w.one.Join(ctx, JoinRequest{Room: w.room, User: "@spam:one"}); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("a join here: %v", err)
	}
	if err := w.two.tryJoin(w.room, "@spam2:two", "one"); err == nil {
		t.Error("a join through another server went by the policy server")
	}
	if _, err := w.one.invite(w.room, "@alice:one", "@spam:two"); matrix.ErrorCode(err) != "M_FORBIDDEN" {
		t.Errorf("an invite: %v", err)
	}
	if _, err := w.one.invite(w.room, "@alice:one", "@ben:two"); err != nil {
		t.Errorf("an invite: %v", err)
	}
	joined, err := w.one.Join(ctx, JoinRequest{Room: w.room, User: "@ann:one"})
	if err != nil || joined != w.room {
		t.Error(err)
	}
	for _, e := range w.one.snap(w.room).Tip {
		if !w.one.snap(w.room).Policy.Recommends(e.Event) {
			t.Errorf("%s is not signed", e.JSON())
		}
	}
}

func TestAnEventMaySitAsideWhileThePolicyServerThinks(t *testing.T) {
	w := newPolicyWorld(t, "11")
	ask := w.policy
	w.policy = func(raw json.RawMessage) (map[matrix.ServerName]map[matrix.KeyID]string, error) {
		w.policy = ask
		if _, err := w.send(w.one, "@alice:one", "in between"); err != nil { // the room moves on meanwhile
			t.Error(err)
		}
		return ask(raw)
	}
	slow, err := w.send(w.one, "@alice:one", "slow")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(w.one.snap(w.room).Tip); n != 2 {
		t.Errorf("a tip of %d events, want the two that do not know each other", n)
	}
	if got := w.one.flags(slow.ID()); got != 0 {
		t.Errorf("flags %d", got)
	}
	next, err := w.send(w.one, "@alice:one", "next")
	if err != nil || len(next.PrevEvents()) != 2 {
		t.Errorf("the next one follows on %v: %v", next.PrevEvents(), err)
	}
}
