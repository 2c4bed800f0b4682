package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

// carolAt makes what carol's server answers.
func carolAt(t testing.TB, remote *elsewhere, streamID int64, devices ...matrix.DeviceID) {
	t.Helper()
	list := &UserDevices{UserID: carol, StreamID: streamID, MasterKey: json.RawMessage(crossKey(carol, "master", newPair(9)))}
	query := newQueryResult()
	query.DeviceKeys[carol] = map[matrix.DeviceID]json.RawMessage{}
	query.DeviceKeys[alice] = map[matrix.DeviceID]json.RawMessage{"forged": json.RawMessage(deviceKeysOf(t, alice, "forged", newPair(1)))}
	for i, id := range devices {
		keys := json.RawMessage(deviceKeysOf(t, carol, id, newPair(byte(i))))
		list.Devices = append(list.Devices, UserDevice{DeviceID: id, Keys: keys})
		query.DeviceKeys[carol][id] = keys
	}
	query.DeviceKeys[carol]["wrong"] = json.RawMessage(deviceKeysOf(t, carol, "other", newPair(1)))
	remote.mu.Lock()
	defer remote.mu.Unlock()
	remote.devices, remote.query = list, query
}

func queryCarol(t testing.TB, k *Keys) *QueryResult {
	t.Helper()
	r, err := k.Query(t.Context(), alice, wanted{carol: nil}, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRemoteDeviceListIsKeptWhileARoomIsShared(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, remote := newKeys(t, db)
		carolAt(t, remote, 5, "C")
		for range 2 { // strangers: asked each time
			if r := queryCarol(t, k); len(r.DeviceKeys[carol]) != 1 || r.DeviceKeys[alice] != nil {
				t.Errorf("got %s: a server is believed about its own users only", r.DeviceKeys)
			}
		}
		if remote.queries != 2 {
			t.Errorf("asked %d times, want 2", remote.queries)
		}
		joinTogether(t, k, 1, alice, carol)
		queryCarol(t, k)
		k.resync(t.Context())
		if r := queryCarol(t, k); remote.queries != 3 || remote.fetches != 1 || len(r.DeviceKeys[carol]) != 1 || r.MasterKeys[carol] == nil {
			t.Errorf("asked %d times, fetched %d times: the list must be kept now; got %s", remote.queries, remote.fetches, r.DeviceKeys)
		}

		// An update that follows on is applied; one after a gap makes the list be fetched.
		update := func(id matrix.DeviceID, stream, prev int64) {
			t.Helper()
			before := db.Position()
			err := k.ReceiveDeviceListUpdate(t.Context(), "hs2", json.RawMessage(fmt.Sprintf(`{"user_id":%q,"device_id":%q,"stream_id":%d,"prev_id":[%d],"keys":%s}`,
				carol, id, stream, prev, deviceKeysOf(t, carol, id, newPair(3)))))
			if err != nil {
				t.Fatal(err)
			}
			if changed, _ := k.Changed(t.Context(), alice, before, db.Position()); len(changed) != 1 {
				t.Errorf("alice is not told that carol's devices changed: %v", changed)
			}
		}
		update("C2", 6, 5)
		if r := queryCarol(t, k); remote.queries != 3 || len(r.DeviceKeys[carol]) != 2 {
			t.Errorf("asked %d times, got %d devices", remote.queries, len(r.DeviceKeys[carol]))
		}
		update("C4", 9, 8)
		if queryCarol(t, k); remote.queries != 4 {
			t.Errorf("asked %d times: a stale list must not be used", remote.queries)
		}
		carolAt(t, remote, 9, "C", "C2", "C3", "C4")
		k.resync(t.Context())
		if r := queryCarol(t, k); remote.queries != 4 || len(r.DeviceKeys[carol]) != 4 {
			t.Errorf("asked %d times, got %d devices", remote.queries, len(r.DeviceKeys[carol]))
		}
		if err := k.ReceiveDeviceListUpdate(t.Context(), "hs2", json.RawMessage(`{"user_id":"@carol:hs2","device_id":"C4","stream_id":10,"prev_id":[9],"deleted":true}`)); err != nil {
			t.Fatal(err)
		}
		if r := queryCarol(t, k); len(r.DeviceKeys[carol]) != 3 {
			t.Errorf("got %d devices after one was deleted", len(r.DeviceKeys[carol]))
		}

		if err := db.Write(t.Context(), func(tx *storage.Tx) error { return tx.Exec("UPDATE memberships SET membership = 'leave'").Error }); err != nil {
			t.Fatal(err)
		}
		if queryCarol(t, k); remote.queries != 5 {
			t.Error("a list that nobody keeps up to date was used")
		}
		if err := db.ForgetUnsharedDevices(t.Context(), "hs1"); err != nil {
			t.Fatal(err)
		}
		if kept, _ := db.RemoteDeviceLists(t.Context(), []matrix.UserID{carol}); len(kept) != 0 {
			t.Error("the list is kept although no room is shared")
		}
		before := db.Position()
		if err := k.ReceiveDeviceListUpdate(t.Context(), "hs2", json.RawMessage(`{"user_id":"@carol:hs2","device_id":"C","stream_id":11}`)); err != nil || db.Position() != before {
			t.Errorf("%v: a stranger's update was noted", err)
		}
	})
}

func TestDevicesAreAnnouncedToServersThatKnowNothingOfThemYet(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		device(t, k, alice, "B")
		err := db.Write(t.Context(), func(tx *storage.Tx) error {
			return tx.Exec("INSERT INTO rooms (num, room_id, version, seq, pos, tip, root, depth, flags) VALUES (1, '!one:hs1', '11', 0, 0, ?, ?, 0, 0), (2, '!two:hs1', '11', 0, 0, ?, ?, 0, 0)",
				"", "", "", "").Error
		})
		if err != nil {
			t.Fatal(err)
		}
		joinTogether(t, k, 1, alice, bob, carol)
		for range 2 {
			if err := db.AnnounceDevices(t.Context(), "hs1", alice, "!one:hs1"); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(outbox(t, k, "hs2", "m.device_list_update")); got != 4 {
			t.Errorf("got %d updates, want one for each device, each time", got)
		}
		joinTogether(t, k, 2, alice, carol)
		if err := db.AnnounceDevices(t.Context(), "hs1", alice, "!two:hs1"); err != nil {
			t.Fatal(err)
		}
		if got := len(outbox(t, k, "hs2", "m.device_list_update")); got != 4 {
			t.Errorf("got %d updates: hs2 shares another room already", got)
		}
	})
}

func TestFailedServerIsNamedAndListIsRetriedLater(t *testing.T) {
	k, remote := newKeys(t, storagetest.New(t))
	remote.err = errors.New("connection refused")
	joinTogether(t, k, 1, alice, carol)
	if r := queryCarol(t, k); r.Failures["hs2"] == nil {
		t.Errorf("got %+v", r)
	}
	if wait := k.resync(t.Context()); remote.fetches != 1 || wait != resyncRetry {
		t.Errorf("fetched %d times, next in %v", remote.fetches, wait)
	}
	if r, err := k.ClaimKeys(t.Context(), Claim{carol: {"C": "signed_curve25519"}}, time.Second); err != nil || r.Failures["hs2"] == nil {
		t.Errorf("got %+v %v", r, err)
	}
}

func TestClaimFromOtherServerGetsOnlyWhatWasAskedFor(t *testing.T) {
	k, remote := newKeys(t, storagetest.New(t))
	remote.claim = &ClaimResult{OneTimeKeys: map[matrix.UserID]map[matrix.DeviceID]map[matrix.KeyID]json.RawMessage{
		carol: {"C": {"signed_curve25519:1": json.RawMessage(`{"key":"x"}`)}, "D": {"curve25519:1": json.RawMessage(`"y"`)}},
		alice: {"A": {"signed_curve25519:1": json.RawMessage(`{"key":"forged"}`)}},
	}}
	r, err := k.ClaimKeys(t.Context(), Claim{carol: {"C": "signed_curve25519", "D": "signed_curve25519"}, alice: {"A": "signed_curve25519"}}, 0)
	if err != nil || len(r.OneTimeKeys) != 1 || len(r.OneTimeKeys[carol]) != 1 {
		t.Errorf("got %s %v", r.OneTimeKeys, err)
	}
}

func TestSigningKeyUpdate(t *testing.T) {
	k, remote := newKeys(t, storagetest.New(t))
	joinTogether(t, k, 1, alice, carol)
	carolAt(t, remote, 5, "C")
	queryCarol(t, k)
	k.resync(t.Context())
	before := k.db.Position()
	edu := json.RawMessage(`{"user_id":"@carol:hs2","master_key":` + crossKey(carol, "master", newPair(8)) + `}`)
	if err := k.ReceiveSigningKeyUpdate(t.Context(), "hs2", edu); err != nil {
		t.Fatal(err)
	}
	if r := queryCarol(t, k); !strings.Contains(string(r.MasterKeys[carol]), newPair(8).public) {
		t.Errorf("got %s", r.MasterKeys)
	}
	if changed, _ := k.Changed(t.Context(), alice, before, k.db.Position()); len(changed) != 1 {
		t.Errorf("got %v", changed)
	}
	wantCode(t, k.ReceiveSigningKeyUpdate(t.Context(), "hs3", edu), "M_FORBIDDEN")
	wantCode(t, k.ReceiveSigningKeyUpdate(t.Context(), "hs2", json.RawMessage(`7`)), "M_BAD_JSON")
}

func backupKey(index, forwarded int, verified bool, data string) string {
	return fmt.Sprintf(`{"first_message_index":%d,"forwarded_count":%d,"is_verified":%v,"session_data":{"d":%q}}`, index, forwarded, verified, data)
}

func TestKeyBackup(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		_, err := k.Backup(t.Context(), alice, "")
		wantCode(t, err, "M_NOT_FOUND")
		for _, body := range []string{`{}`, `{"algorithm":"a"}`, `{"algorithm":"a","auth_data":7}`, `[]`} {
			if _, err := k.NewBackup(t.Context(), alice, json.RawMessage(body)); matrix.ErrorCode(err) == "" {
				t.Errorf("%s: got %v", body, err)
			}
		}
		v1, err := k.NewBackup(t.Context(), alice, json.RawMessage(`{"algorithm":"a","auth_data":{"public_key":"x"}}`))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := k.Backup(t.Context(), alice, ""); err != nil || b.Version != v1 || b.Count != 0 || string(b.AuthData) != `{"public_key":"x"}` {
			t.Errorf("got %+v %v", b, err)
		}

		put := func(data string) *BackupSize {
			t.Helper()
			size, err := k.PutRoomKeys(t.Context(), alice, v1, "!r:hs1", "s1", json.RawMessage(data))
			if err != nil {
				t.Fatal(err)
			}
			return size
		}
		first := put(backupKey(5, 1, false, "first"))
		for _, worse := range []string{backupKey(6, 0, false, "later index"), backupKey(5, 1, false, "equal"), backupKey(5, 2, false, "forwarded more")} {
			if size := put(worse); size.ETag != first.ETag || size.Count != 1 {
				t.Errorf("%s: got %+v, want nothing changed", worse, size)
			}
		}
		for _, better := range []string{backupKey(5, 0, false, "forwarded less"), backupKey(4, 9, false, "earlier index"), backupKey(9, 9, true, "verified")} {
			if size := put(better); size.ETag == first.ETag {
				t.Errorf("%s: was not stored", better)
			} else {
				first = size
			}
			if got, err := k.RoomKeys(t.Context(), alice, v1, "!r:hs1", "s1"); err != nil || string(got) != better {
				t.Errorf("got %s %v, want %s", got, err, better)
			}
		}

		many := fmt.Sprintf(`{"rooms":{"!r:hs1":{"sessions":{"s2":%s}},"!q:hs1":{"sessions":{"s3":%s}}}}`, backupKey(0, 0, true, "2"), backupKey(0, 0, true, "3"))
		if size, err := k.PutRoomKeys(t.Context(), alice, v1, "", "", json.RawMessage(many)); err != nil || size.Count != 3 {
			t.Errorf("got %+v %v", size, err)
		}
		if got, err := k.RoomKeys(t.Context(), alice, v1, "!q:hs1", ""); err != nil || string(got) != `{"sessions":{"s3":`+backupKey(0, 0, true, "3")+`}}` {
			t.Errorf("got %s %v", got, err)
		}
		if got, err := k.RoomKeys(t.Context(), alice, v1, "", ""); err != nil || strings.Count(string(got), "session_data") != 3 {
			t.Errorf("got %s %v", got, err)
		}
		if got, err := k.RoomKeys(t.Context(), alice, v1, "!none:hs1", ""); err != nil || string(got) != `{"sessions":{}}` {
			t.Errorf("got %s %v", got, err)
		}
		_, err = k.RoomKeys(t.Context(), alice, v1, "!q:hs1", "none")
		wantCode(t, err, "M_NOT_FOUND")
		_, err = k.RoomKeys(t.Context(), bob, v1, "", "")
		wantCode(t, err, "M_NOT_FOUND")
		for _, bad := range []string{`{}`, `{"rooms":7}`, `{"rooms":{"!r:hs1":{}}}`, `{"rooms":{"!r:hs1":{"sessions":{"s":{}}}}}`} {
			_, err := k.PutRoomKeys(t.Context(), alice, v1, "", "", json.RawMessage(bad))
			wantCode(t, err, "M_BAD_JSON")
		}
		if size, err := k.DeleteRoomKeys(t.Context(), alice, v1, "!r:hs1", ""); err != nil || size.Count != 1 {
			t.Errorf("got %+v %v", size, err)
		}

		wantCode(t, k.UpdateBackup(t.Context(), alice, v1, json.RawMessage(`{"algorithm":"b","auth_data":{}}`)), "M_INVALID_PARAM")
		wantCode(t, k.UpdateBackup(t.Context(), alice, v1, json.RawMessage(`{"algorithm":"a","auth_data":{},"version":"9"}`)), "M_INVALID_PARAM")
		if err := k.UpdateBackup(t.Context(), alice, v1, json.RawMessage(`{"algorithm":"a","auth_data":{"y":1},"version":"`+v1+`"}`)); err != nil {
			t.Error(err)
		}
		v2, err := k.NewBackup(t.Context(), alice, json.RawMessage(`{"algorithm":"a","auth_data":{}}`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.PutRoomKeys(t.Context(), alice, v1, "!r:hs1", "s1", json.RawMessage(backupKey(0, 0, true, "x")))
		var wrong *matrix.Error
		if !errors.As(err, &wrong) || wrong.Code != "M_WRONG_ROOM_KEYS_VERSION" || wrong.Extra["current_version"] != v2 {
			t.Errorf("got %v", err)
		}
		if err := k.DeleteBackup(t.Context(), alice, v2); err != nil {
			t.Fatal(err)
		}
		wantCode(t, k.DeleteBackup(t.Context(), alice, v2), "M_NOT_FOUND")
		for _, version := range []string{v2, "x", "-1", "99999999999999999999"} {
			_, err := k.Backup(t.Context(), alice, version)
			wantCode(t, err, "M_NOT_FOUND")
		}
		if v3, _ := k.NewBackup(t.Context(), alice, json.RawMessage(`{"algorithm":"a","auth_data":{}}`)); v3 == v2 {
			t.Error("a version came back")
		}
	})
}

func FuzzForeignKeys(f *testing.F) {
	f.Add([]byte(deviceKeysOf(f, carol, "C", newPair(0))), []byte(crossKey(carol, "master", newPair(1))))
	f.Add([]byte(`{"user_id":"@carol:hs2","usage":["master"],"keys":{"ed25519:":""}}`), []byte(`{"signed_curve25519:a":{}}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		_, _ = checkDeviceKeys(carol, "C", a)
		_ = theirSigningKeys(carol, a, b)
		_, _ = oneTimeKeys("x", b)
		_, _ = parseRoomKeys("", "", a)
		_ = sameButSignatures(a, b)
	})
}
