package keys

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

const (
	alice = matrix.UserID("@alice:hs1")
	bob   = matrix.UserID("@bob:hs1")
	carol = matrix.UserID("@carol:hs2")
)

// elsewhere is another server.
type elsewhere struct {
	mu      sync.Mutex
	err     error
	queries int
	fetches int
	query   *QueryResult
	claim   *ClaimResult
	devices *UserDevices
}

func (e *elsewhere) QueryKeys(context.Context, matrix.ServerName, map[matrix.UserID][]matrix.DeviceID) (*QueryResult, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queries++
	return e.query, e.err
}

func (e *elsewhere) ClaimKeys(context.Context, matrix.ServerName, Claim) (*ClaimResult, error) {
	return e.claim, e.err
}

func (e *elsewhere) UserDevices(context.Context, matrix.ServerName, matrix.UserID) (*UserDevices, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fetches++
	return e.devices, e.err
}

func newKeys(t testing.TB, db *storage.DB) (*Keys, *elsewhere) {
	remote := &elsewhere{}
	k := New(Options{Config: DefaultConfig(), ServerName: "hs1", DB: db, Remote: remote,
		Now: func() time.Time { return time.UnixMilli(1_700_000_000_000) }})
	t.Cleanup(k.Close)
	for _, user := range []matrix.UserID{alice, bob} {
		if err := db.CreateUser(t.Context(), storage.NewUser{UserID: user}); err != nil {
			t.Fatal(err)
		}
	}
	return k, remote
}

// device logs a user in.
func device(t testing.TB, k *Keys, user matrix.UserID, id matrix.DeviceID) {
	t.Helper()
	err := k.db.OpenSession(t.Context(), storage.NewSession{User: user, Device: id, Name: "phone", Access: []byte(user + "/" + matrix.UserID(id)), MaxDevices: 100})
	if err != nil {
		t.Fatal(err)
	}
}

// joinTogether puts users into one room.
func joinTogether(t testing.TB, k *Keys, room int, users ...matrix.UserID) {
	t.Helper()
	err := k.db.Write(t.Context(), func(tx *storage.Tx) error {
		for _, u := range users {
			if err := tx.Exec("INSERT INTO memberships (room, server, user_id, membership, num, pos, forgotten) VALUES (?, ?, ?, 'join', 0, 0, 0)", room, u.Server(), u).Error; err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pair is a key pair for tests.
type pair struct {
	private ed25519.PrivateKey
	public  string
}

func newPair(seed byte) pair {
	private := ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('a'+seed)), 32)))
	return pair{private, base64.RawStdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))}
}

// sign adds a signature to a JSON object.
func (p pair) sign(t testing.TB, object string, user matrix.UserID, keyID string) string {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(object), &o); err != nil {
		t.Fatal(err)
	}
	signatures, _ := o["signatures"].(map[string]any)
	delete(o, "signatures")
	raw, _ := json.Marshal(o)
	canonical, err := matrix.CanonicalJSON(nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	if signatures == nil {
		signatures = map[string]any{}
	}
	mine, _ := signatures[string(user)].(map[string]any)
	if mine == nil {
		mine = map[string]any{}
	}
	mine["ed25519:"+keyID] = base64.RawStdEncoding.EncodeToString(ed25519.Sign(p.private, canonical))
	signatures[string(user)] = mine
	o["signatures"] = signatures
	raw, _ = json.Marshal(o)
	return string(raw)
}

func deviceKeysOf(t testing.TB, user matrix.UserID, id matrix.DeviceID, p pair) string {
	t.Helper()
	return p.sign(t, fmt.Sprintf(`{"user_id":%q,"device_id":%q,"algorithms":["m.olm.v1.curve25519-aes-sha2"],"keys":{"ed25519:%s":%q}}`, user, id, id, p.public), user, string(id))
}

func crossKey(user matrix.UserID, usage string, p pair) string {
	return fmt.Sprintf(`{"user_id":%q,"usage":[%q],"keys":{"ed25519:%s":%q}}`, user, usage, p.public, p.public)
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	if got := matrix.ErrorCode(err); got != code {
		t.Errorf("got error %v, want %s", err, code)
	}
}

func upload(t testing.TB, k *Keys, user matrix.UserID, id matrix.DeviceID, body string) map[string]int {
	t.Helper()
	counts, err := k.Upload(t.Context(), user, id, json.RawMessage(body))
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

func TestOneTimeKeysAreGivenOutOnceInOrderThenFallback(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		for range 2 { // the same again changes nothing
			counts := upload(t, k, alice, "A", `{"one_time_keys":{"signed_curve25519:z":{"key":"1"},"signed_curve25519:a":{"key":"2"},"curve25519:q":"3"},
				"fallback_keys":{"signed_curve25519:f":{"key":"4","fallback":true}}}`)
			if diff := cmp.Diff(map[string]int{"signed_curve25519": 2, "curve25519": 1}, counts); diff != "" {
				t.Error(diff)
			}
		}
		_, err := k.Upload(t.Context(), alice, "A", json.RawMessage(`{"one_time_keys":{"signed_curve25519:z":{"key":"other"}}}`))
		wantCode(t, err, "M_INVALID_PARAM")
		if _, fallback, err := k.OneTimeKeyCounts(t.Context(), alice, "A"); err != nil || !cmp.Equal(fallback, []string{"signed_curve25519"}) {
			t.Errorf("got %v %v", fallback, err)
		}
		var got []string
		for range 4 {
			r, err := k.ClaimKeys(t.Context(), Claim{alice: {"A": "signed_curve25519", "B": "signed_curve25519"}}, 0)
			if err != nil {
				t.Fatal(err)
			}
			for id := range r.OneTimeKeys[alice]["A"] {
				got = append(got, string(id))
			}
		}
		want := []string{"signed_curve25519:z", "signed_curve25519:a", "signed_curve25519:f", "signed_curve25519:f"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		counts, fallback, err := k.OneTimeKeyCounts(t.Context(), alice, "A")
		if err != nil || counts["signed_curve25519"] != 0 || counts["curve25519"] != 1 || len(fallback) != 0 {
			t.Errorf("got %v %v %v", counts, fallback, err)
		}
		upload(t, k, alice, "A", `{"fallback_keys":{"signed_curve25519:g":{"key":"5","fallback":true}}}`)
		if _, fallback, _ := k.OneTimeKeyCounts(t.Context(), alice, "A"); len(fallback) != 1 {
			t.Errorf("got %v: a new fallback key is unused", fallback)
		}
		if r, err := k.ClaimKeys(t.Context(), Claim{alice: {"B": "signed_curve25519"}}, 0); err != nil || len(r.OneTimeKeys) != 0 {
			t.Errorf("got %v %v for a device without keys", r, err)
		}
	})
}

func TestParallelClaimsNeverGetTheSameKey(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		all := map[string]any{}
		for i := range 20 {
			all[fmt.Sprintf("signed_curve25519:%d", i)] = map[string]string{"key": "x"}
		}
		body, _ := json.Marshal(map[string]any{"one_time_keys": all})
		upload(t, k, alice, "A", string(body))
		var mu sync.Mutex
		seen := map[matrix.KeyID]int{}
		var group sync.WaitGroup
		for range 30 {
			group.Go(func() {
				r, err := k.LocalClaim(t.Context(), Claim{alice: {"A": "signed_curve25519"}})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				for id := range r.OneTimeKeys[alice]["A"] {
					seen[id]++
				}
			})
		}
		group.Wait()
		for id, n := range seen {
			if n > 1 {
				t.Errorf("%s was given out %d times", id, n)
			}
		}
		if len(seen) != 20 {
			t.Errorf("%d keys given out, want 20", len(seen))
		}
	})
}

func TestUploadRefusals(t *testing.T) {
	k, _ := newKeys(t, storagetest.New(t))
	device(t, k, alice, "A")
	p := newPair(0)
	for body, code := range map[string]string{
		`[]`:                  "M_BAD_JSON",
		`{"device_keys":[]}`:  "M_BAD_JSON",
		`{"device_keys":{}}`:  "M_BAD_JSON",
		`{"device_keys":"x"}`: "M_BAD_JSON",
		`{"device_keys":{"user_id":"@alice:hs1","device_id":"A"}}`:          "M_BAD_JSON",
		`{"device_keys":` + deviceKeysOf(t, bob, "A", p) + `}`:              "M_INVALID_PARAM",
		`{"device_keys":` + deviceKeysOf(t, alice, "B", p) + `}`:            "M_INVALID_PARAM",
		`{"one_time_keys":{"nocolon":"x"}}`:                                 "M_INVALID_PARAM",
		`{"one_time_keys":{"a:b":7}}`:                                       "M_BAD_JSON",
		`{"one_time_keys":{"a:b":"x","a:b":"y"}}`:                           "M_BAD_JSON",
		`{"one_time_keys":["a:b"]}`:                                         "M_BAD_JSON",
		`{"fallback_keys":{"a:b":null}}`:                                    "M_BAD_JSON",
		`{"device_keys":` + deviceKeysOf(t, alice, "A", p) + `,"x":` + `7}`: "",
	} {
		_, err := k.Upload(t.Context(), alice, "A", json.RawMessage(body))
		if got := matrix.ErrorCode(err); got != code {
			t.Errorf("%.80s: got %v, want %q", body, err, code)
		}
	}
	_, err := k.Upload(t.Context(), alice, "gone", json.RawMessage(`{"device_keys":`+deviceKeysOf(t, alice, "gone", p)+`}`))
	wantCode(t, err, "M_UNKNOWN_TOKEN")
}

func TestQueryShowsNamesToClientsOnly(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		device(t, k, alice, "B")
		upload(t, k, alice, "A", `{"device_keys":`+deviceKeysOf(t, alice, "A", newPair(0))+`}`)
		upload(t, k, alice, "B", `{"device_keys":`+deviceKeysOf(t, alice, "B", newPair(1))+`}`)
		r, err := k.Query(t.Context(), bob, wanted{alice: {"A"}, bob: nil}, 0)
		if err != nil || len(r.DeviceKeys[alice]) != 1 || !strings.Contains(string(r.DeviceKeys[alice]["A"]), `"unsigned":{"device_display_name":"phone"}`) {
			t.Errorf("got %s %v", r.DeviceKeys, err)
		}
		if empty, ok := r.DeviceKeys[bob]; !ok || len(empty) != 0 {
			t.Errorf("got %v: a user without keys has an empty entry", r.DeviceKeys)
		}
		r, err = k.LocalQuery(t.Context(), wanted{alice: nil, carol: nil})
		if err != nil || len(r.DeviceKeys[alice]) != 2 || len(r.DeviceKeys) != 1 || strings.Contains(string(r.DeviceKeys[alice]["A"]), "phone") {
			t.Errorf("got %s %v", r.DeviceKeys, err)
		}
		list, err := k.LocalUserDevices(t.Context(), alice)
		if err != nil || len(list.Devices) != 2 || list.StreamID == 0 {
			t.Errorf("got %+v %v", list, err)
		}
		_, err = k.LocalUserDevices(t.Context(), "@nobody:hs1")
		wantCode(t, err, "M_NOT_FOUND")
	})
}

func outbox(t testing.TB, k *Keys, server matrix.ServerName, typ string) (found []map[string]any) {
	t.Helper()
	edus, err := k.db.Outbox(t.Context(), server, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edus {
		if e.Type == typ {
			var content map[string]any
			if err := json.Unmarshal(e.Content, &content); err != nil {
				t.Fatal(err)
			}
			found = append(found, content)
		}
	}
	return found
}

func TestDeviceChangesAreToldWithAChainOfStreamIDs(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		start := db.Position()
		upload(t, k, alice, "A", `{"device_keys":`+deviceKeysOf(t, alice, "A", newPair(0))+`}`)
		uploaded := db.Position()
		if changed, err := k.Changed(t.Context(), bob, start, uploaded); err != nil || !cmp.Equal(changed, []matrix.UserID{alice}) {
			t.Errorf("got %v %v", changed, err)
		}
		upload(t, k, alice, "A", `{"device_keys":`+deviceKeysOf(t, alice, "A", newPair(0))+`}`)
		if changed, _ := k.Changed(t.Context(), bob, uploaded, db.Position()); len(changed) != 0 {
			t.Errorf("got %v: the same keys again are no change", changed)
		}
		if err := db.RenameDevice(t.Context(), alice, "A", "tablet"); err != nil {
			t.Fatal(err)
		}
		if err := db.DeleteDevices(t.Context(), alice, nil); err != nil {
			t.Fatal(err)
		}
		edus := outbox(t, k, "", "m.device_list_update")
		if len(edus) != 3 {
			t.Fatalf("got %d updates, want 3: %v", len(edus), edus)
		}
		var previous []any
		for i, e := range edus {
			if diff := cmp.Diff(previous, e["prev_id"].([]any), cmp.Transformer("len", func(a []any) string { return fmt.Sprint(a) })); diff != "" {
				t.Errorf("update %d: %s", i, diff)
			}
			previous = []any{e["stream_id"]}
			if deleted := e["deleted"] == true; deleted != (i == 2) || deleted == (e["keys"] != nil) {
				t.Errorf("update %d: %v", i, e)
			}
		}
		list, err := k.LocalUserDevices(t.Context(), alice)
		if err != nil || float64(list.StreamID) != edus[2]["stream_id"] || len(list.Devices) != 0 {
			t.Errorf("got %+v %v", list, err)
		}
	})
}

// crossSign uploads a user's cross-signing keys.
func crossSign(t testing.TB, k *Keys, user matrix.UserID, master, self, usr pair) string {
	t.Helper()
	return fmt.Sprintf(`{"master_key":%s,"self_signing_key":%s,"user_signing_key":%s}`, crossKey(user, "master", master),
		master.sign(t, crossKey(user, "self_signing", self), user, master.public),
		master.sign(t, crossKey(user, "user_signing", usr), user, master.public))
}

func TestCrossSigning(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		phone, master, self, usr := newPair(0), newPair(1), newPair(2), newPair(3)
		upload(t, k, alice, "A", `{"device_keys":`+deviceKeysOf(t, alice, "A", phone)+`}`)
		body := crossSign(t, k, alice, master, self, usr)

		wantCode(t, k.UploadCrossSigning(t.Context(), alice, json.RawMessage(`{"self_signing_key":`+crossKey(alice, "self_signing", self)+`}`)), "M_MISSING_PARAM")
		forged := strings.Replace(body, "self_signing_key", "x", 1)
		forged = forged[:len(forged)-1] + `,"self_signing_key":` + usr.sign(t, crossKey(alice, "self_signing", self), alice, master.public) + `}`
		wantCode(t, k.UploadCrossSigning(t.Context(), alice, json.RawMessage(forged)), "M_INVALID_SIGNATURE")
		wantCode(t, k.UploadCrossSigning(t.Context(), bob, json.RawMessage(body)), "M_INVALID_PARAM")
		wantCode(t, k.UploadCrossSigning(t.Context(), alice, json.RawMessage(strings.ReplaceAll(body, `"master"`, `"robot"`))), "M_INVALID_PARAM")

		for i, want := range []bool{false, false} { // the first time, and the same again
			if needs, err := k.CrossSigningNeedsAuth(t.Context(), alice, json.RawMessage(body)); needs != want || err != nil {
				t.Errorf("upload %d: got %v %v, want %v", i, needs, err, want)
			}
			if err := k.UploadCrossSigning(t.Context(), alice, json.RawMessage(body)); err != nil {
				t.Fatal(err)
			}
		}
		if needs, err := k.CrossSigningNeedsAuth(t.Context(), alice, json.RawMessage(crossSign(t, k, alice, newPair(7), self, usr))); !needs || err != nil {
			t.Errorf("got %v %v: replacing keys needs authentication", needs, err)
		}

		// Own device by the self-signing key, own master key by the device, bob's master key by the user-signing key.
		bobMaster := newPair(4)
		if err := k.UploadCrossSigning(t.Context(), bob, json.RawMessage(crossSign(t, k, bob, bobMaster, newPair(5), newPair(6)))); err != nil {
			t.Fatal(err)
		}
		start := db.Position()
		signed := fmt.Sprintf(`{%q:{"A":%s,%q:%s,"nosuch":{}},%q:{%q:%s}}`, alice,
			self.sign(t, deviceKeysOf(t, alice, "A", phone), alice, self.public),
			master.public, phone.sign(t, crossKey(alice, "master", master), alice, "A"),
			bob, bobMaster.public, usr.sign(t, crossKey(bob, "master", bobMaster), alice, usr.public))
		failures, err := k.UploadSignatures(t.Context(), alice, json.RawMessage(signed))
		if err != nil || len(failures) != 1 || len(failures[alice]) != 1 || failures[alice]["nosuch"].Code != "M_NOT_FOUND" {
			t.Errorf("got %v %v", failures, err)
		}
		forged = fmt.Sprintf(`{%q:{"A":%s}}`, alice, usr.sign(t, deviceKeysOf(t, alice, "A", phone), alice, self.public))
		if failures, err := k.UploadSignatures(t.Context(), alice, json.RawMessage(forged)); err != nil || failures[alice]["A"].Code != "M_INVALID_SIGNATURE" {
			t.Errorf("got %v %v", failures, err)
		}

		mine, _ := k.Query(t.Context(), alice, wanted{alice: nil, bob: nil}, 0)
		his, _ := k.Query(t.Context(), bob, wanted{alice: nil, bob: nil}, 0)
		theirs, _ := k.LocalQuery(t.Context(), wanted{alice: nil, bob: nil})
		for _, r := range []*QueryResult{mine, his, theirs} {
			if err := matrix.VerifyJSON(r.DeviceKeys[alice]["A"], string(alice), matrix.KeyID("ed25519:"+self.public), publicKey(t, self)); err != nil {
				t.Errorf("self-signed device: %v", err)
			}
			if err := matrix.VerifyJSON(r.MasterKeys[alice], string(alice), "ed25519:A", publicKey(t, phone)); err != nil {
				t.Errorf("master key signed by a device: %v", err)
			}
		}
		if !strings.Contains(string(mine.MasterKeys[bob]), usr.public) || strings.Contains(string(his.MasterKeys[bob]), usr.public) || strings.Contains(string(theirs.MasterKeys[bob]), usr.public) {
			t.Error("a signature by a user-signing key is for its owner only")
		}
		if mine.UserSigningKeys[alice] == nil || his.UserSigningKeys[alice] != nil || theirs.UserSigningKeys[alice] != nil || mine.UserSigningKeys[bob] != nil {
			t.Error("user-signing keys are for their owner only")
		}
		if changed, _ := k.Changed(t.Context(), alice, start, db.Position()); len(changed) != 2 {
			t.Errorf("alice sees %v changed, want herself and bob", changed)
		}
		if changed, _ := k.Changed(t.Context(), bob, start, db.Position()); !cmp.Equal(changed, []matrix.UserID{alice}) {
			t.Errorf("bob sees %v changed, want alice alone", changed)
		}
		if n := len(outbox(t, k, "", "m.signing_key_update")); n != 4 {
			t.Errorf("got %d signing key updates, want 4", n)
		}
		if err := db.OpenSession(t.Context(), storage.NewSession{User: alice, Device: matrix.DeviceID(master.public), Access: []byte("x"), MaxDevices: 9}); !errors.Is(err, storage.ErrDeviceIsKey) {
			t.Errorf("got %v: a device must not be named like a cross-signing key", err)
		}
	})
}

func publicKey(t testing.TB, p pair) *matrix.PublicKey {
	t.Helper()
	key, err := matrix.ParsePublicKey(p.public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestToDeviceIsDeliveredOnceAndDeletedWhenConfirmed(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		device(t, k, alice, "B")
		if got, err := k.ToDevice(t.Context(), alice, "A", 0, db.Position(), 100); len(got) != 0 || err != nil {
			t.Fatalf("got %v %v", got, err)
		}
		send := func(n string) {
			t.Helper()
			err := k.SendToDevice(t.Context(), bob, "m.x", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{
				alice: {"A": json.RawMessage(`{"n":` + n + `}`), "nosuch": json.RawMessage(`{}`)}})
			if err != nil {
				t.Fatal(err)
			}
		}
		send("1")
		send("2")
		first := db.Position()
		send("3")
		for range 2 { // asking again without confirming gets the same
			got, err := k.ToDevice(t.Context(), alice, "A", 0, first, 100)
			if err != nil || len(got) != 2 || string(got[0].Event) != `{"content":{"n":1},"sender":"@bob:hs1","type":"m.x"}` {
				t.Errorf("got %v %v", got, err)
			}
		}
		if got, _ := k.ToDevice(t.Context(), alice, "A", 0, db.Position(), 1); len(got) != 1 {
			t.Errorf("got %d messages, limit is 1", len(got))
		}
		if got, err := k.ToDevice(t.Context(), alice, "A", first, db.Position(), 100); err != nil || len(got) != 1 || !strings.Contains(string(got[0].Event), `"n":3`) {
			t.Errorf("got %v %v", got, err)
		}
		if got, _ := k.ToDevice(t.Context(), alice, "A", 0, db.Position(), 100); len(got) != 1 {
			t.Errorf("got %d messages: confirmed ones must be gone", len(got))
		}
		if got, _ := k.ToDevice(t.Context(), alice, "B", 0, db.Position(), 100); len(got) != 0 {
			t.Errorf("got %v for another device", got)
		}
		err := k.SendToDevice(t.Context(), bob, "m.x", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{alice: {"*": json.RawMessage(`{"all":1}`)}})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := k.ToDevice(t.Context(), alice, "B", 0, db.Position(), 100); len(got) != 1 {
			t.Errorf("got %v: a message to * is for every device, and memory must not hide it", got)
		}
		wantCode(t, k.SendToDevice(t.Context(), bob, "m.x", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{alice: {"A": json.RawMessage(`7`)}}), "M_BAD_JSON")
		big := json.RawMessage(`{"a":"` + strings.Repeat("x", 70000) + `"}`)
		wantCode(t, k.SendToDevice(t.Context(), bob, "m.x", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{alice: {"A": big}}), "M_TOO_LARGE")
		wantCode(t, k.SendToDevice(t.Context(), bob, "m.x", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{"alice": {"A": big}}), "M_INVALID_PARAM")
	})
}

func TestInboxIsBounded(t *testing.T) {
	k, _ := newKeys(t, storagetest.New(t))
	k.cfg.MaxInbox = 3
	device(t, k, alice, "A")
	for i := range 10 {
		if err := k.SendToDevice(t.Context(), bob, "m.x", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{alice: {"A": json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))}}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := k.ToDevice(t.Context(), alice, "A", 0, k.db.Position(), 100)
	if err != nil || len(got) != 3 || !strings.Contains(string(got[2].Event), `"n":9`) {
		t.Errorf("got %v %v", got, err)
	}
}

func TestToDeviceToOtherServersGoesThroughTheOutbox(t *testing.T) {
	k, _ := newKeys(t, storagetest.New(t))
	devices := map[matrix.DeviceID]json.RawMessage{}
	for i := range 5 {
		devices[matrix.DeviceID(fmt.Sprint("D", i))] = json.RawMessage(`{"a":"` + strings.Repeat("x", 20000) + `"}`)
	}
	if err := k.SendToDevice(t.Context(), alice, "m.x", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{carol: devices}); err != nil {
		t.Fatal(err)
	}
	edus := outbox(t, k, "hs2", "m.direct_to_device")
	if len(edus) != 3 {
		t.Errorf("got %d EDUs: 100 kB must be split", len(edus))
	}
	ids, sent := map[any]bool{}, 0
	for _, e := range edus {
		ids[e["message_id"]] = true
		sent += len(e["messages"].(map[string]any)[string(carol)].(map[string]any))
	}
	if len(ids) != len(edus) || sent != 5 {
		t.Errorf("got %d message IDs and %d messages", len(ids), sent)
	}
}

func TestDirectToDeviceFromOtherServer(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		edu := json.RawMessage(`{"sender":"@carol:hs2","type":"m.x","message_id":"m1","messages":{"@alice:hs1":{"*":{"n":1}},"@dave:hs3":{"D":{}}}}`)
		for range 2 {
			if err := k.ReceiveDirectToDevice(t.Context(), "hs2", edu); err != nil {
				t.Fatal(err)
			}
		}
		got, err := k.ToDevice(t.Context(), alice, "A", 0, db.Position(), 100)
		if err != nil || len(got) != 1 || string(got[0].Event) != `{"content":{"n":1},"sender":"@carol:hs2","type":"m.x"}` {
			t.Errorf("got %v %v, want the message once", got, err)
		}
		wantCode(t, k.ReceiveDirectToDevice(t.Context(), "hs3", edu), "M_FORBIDDEN")
		wantCode(t, k.ReceiveDirectToDevice(t.Context(), "hs2", json.RawMessage(`[]`)), "M_BAD_JSON")
		wantCode(t, k.ReceiveDirectToDevice(t.Context(), "hs2", json.RawMessage(`{"sender":"@carol:hs2","type":"m.x"}`)), "M_INVALID_PARAM")
	})
}
