package keys

import (
	"encoding/json"
	"strings"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func TestDehydratedDeviceReceivesUntilItIsDeleted(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		k, _ := newKeys(t, db)
		device(t, k, alice, "A")
		_, err := k.DehydratedDevice(t.Context(), alice)
		wantCode(t, err, "M_NOT_FOUND")
		put := func(id matrix.DeviceID) error {
			_, err := k.PutDehydratedDevice(t.Context(), alice, json.RawMessage(`{"device_id":"`+string(id)+`","device_data":{"algorithm":"x"},
				"device_keys":`+deviceKeysOf(t, alice, id, newPair(0))+`,"one_time_keys":{"signed_curve25519:a":{"key":"1"}}}`))
			return err
		}
		wantCode(t, put("A"), "M_INVALID_PARAM")
		for _, id := range []matrix.DeviceID{"D1", "D2"} { // the second takes the place of the first
			if err := put(id); err != nil {
				t.Fatal(err)
			}
		}
		if raw, err := k.DehydratedDevice(t.Context(), alice); err != nil || string(raw) != `{"device_data":{"algorithm":"x"},"device_id":"D2"}` {
			t.Errorf("got %s %v", raw, err)
		}
		r, err := k.Query(t.Context(), bob, wanted{alice: nil}, 0)
		if err != nil || r.DeviceKeys[alice]["D1"] != nil || r.DeviceKeys[alice]["D2"] == nil {
			t.Errorf("got %s %v", r.DeviceKeys, err)
		}
		err = k.SendToDevice(t.Context(), bob, "m.x", map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{alice: {"D2": json.RawMessage(`{"n":1}`)}})
		if err != nil {
			t.Fatal(err)
		}
		var page struct {
			Events []json.RawMessage `json:"events"`
			Next   string            `json:"next_batch"`
		}
		for want := 1; want >= 0; want-- {
			raw, err := k.DehydratedEvents(t.Context(), alice, "D2", page.Next)
			if err == nil {
				err = json.Unmarshal(raw, &page)
			}
			if err != nil || len(page.Events) != want {
				t.Errorf("got %s %v, want %d events", raw, err, want)
			}
		}
		_, err = k.DehydratedEvents(t.Context(), alice, "A", "")
		wantCode(t, err, "M_NOT_FOUND")
		_, err = k.DehydratedEvents(t.Context(), alice, "D2", "x")
		wantCode(t, err, "M_INVALID_PARAM")
		if id, err := k.DeleteDehydratedDevice(t.Context(), alice); id != "D2" || err != nil {
			t.Errorf("got %s %v", id, err)
		}
		_, err = k.DeleteDehydratedDevice(t.Context(), alice)
		wantCode(t, err, "M_NOT_FOUND")
		for _, body := range []string{`[]`, `{}`, `{"device_id":"D","device_data":7,"device_keys":{}}`} {
			if _, err := k.PutDehydratedDevice(t.Context(), alice, json.RawMessage(body)); !strings.HasPrefix(matrix.ErrorCode(err), "M_") {
				t.Errorf("%s: got %v", body, err)
			}
		}
	})
}
