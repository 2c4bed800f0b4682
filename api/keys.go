package api

import (
	"encoding/json"
	"time"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
)

// keyRoutes are what end-to-end encryption needs of the server. Spec v1.19 client-server-api/#end-to-end-encryption
func (a *api) keyRoutes() []route {
	return []route{
		{method: post, path: client + "/keys/upload", handle: a.uploadKeys, limit: limitKeys, suspended: true},
		{method: post, path: client + "/keys/query", handle: a.queryKeys, limit: limitKeys, suspended: true},
		{method: post, path: client + "/keys/claim", handle: a.claimKeys, limit: limitKeys, suspended: true},
		{method: post, path: client + "/keys/device_signing/upload", handle: a.uploadCrossSigning, limit: limitKeys, suspended: true,
			aliases: []string{"/_matrix/client/unstable/keys/device_signing/upload"}},
		{method: post, path: client + "/keys/signatures/upload", handle: a.uploadSignatures, limit: limitKeys, suspended: true,
			aliases: []string{"/_matrix/client/unstable/keys/signatures/upload"}},
		{method: put, path: client + "/sendToDevice/{eventType}/{txnId}", handle: a.sendToDevice, limit: limitKeys, suspended: true},
		{method: put, path: dehydrated, handle: a.putDehydrated, limit: limitKeys, suspended: true},
		{method: get, path: dehydrated, handle: a.dehydrated, suspended: true},
		{method: del, path: dehydrated, handle: a.deleteDehydrated, limit: limitKeys, suspended: true},
		{method: post, path: dehydrated + "/{deviceId}/events", handle: a.dehydratedEvents, limit: limitKeys, suspended: true},
	}
}

// dehydrated is where MSC3814 has the device that receives messages while its user is logged in nowhere.
const dehydrated = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"

func (a *api) putDehydrated(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	device, err := a.Keys.PutDehydratedDevice(c.ctx(), c.userID(), body)
	return c.answer(map[string]any{"device_id": device}, err)
}

func (a *api) dehydrated(c *call) error {
	return c.replyRaw(a.Keys.DehydratedDevice(c.ctx(), c.userID()))
}

func (a *api) deleteDehydrated(c *call) error {
	device, err := a.Keys.DeleteDehydratedDevice(c.ctx(), c.userID())
	return c.answer(map[string]any{"device_id": device}, err)
}

func (a *api) dehydratedEvents(c *call) error {
	var r struct {
		NextBatch string `json:"next_batch"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	return c.replyRaw(a.Keys.DehydratedEvents(c.ctx(), c.userID(), matrix.DeviceID(c.Param("deviceId")), r.NextBatch))
}

func (a *api) uploadKeys(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	counts, err := a.Keys.Upload(c.ctx(), c.userID(), c.deviceID(), body)
	return c.answer(map[string]any{"one_time_key_counts": counts}, err)
}

func (a *api) queryKeys(c *call) error {
	var r struct {
		DeviceKeys map[matrix.UserID][]matrix.DeviceID `json:"device_keys"`
		Timeout    int64                               `json:"timeout"` // ms
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.DeviceKeys == nil {
		return matrix.MissingParam("device_keys is missing")
	}
	return c.answer(a.Keys.Query(c.ctx(), c.userID(), r.DeviceKeys, askTimeout(r.Timeout)))
}

func (a *api) claimKeys(c *call) error {
	var r struct {
		OneTimeKeys keys.Claim `json:"one_time_keys"`
		Timeout     int64      `json:"timeout"` // ms
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.OneTimeKeys == nil {
		return matrix.MissingParam("one_time_keys is missing")
	}
	return c.answer(a.Keys.ClaimKeys(c.ctx(), r.OneTimeKeys, askTimeout(r.Timeout)))
}

// askTimeout is how long other servers are waited for, as the client wishes it, at most a minute. 0 is the default.
func askTimeout(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), 60_000)) * time.Millisecond
}

// Replacing cross-signing keys needs the password; the first upload does not.
// Spec v1.19 client-server-api/#post_matrixclientv3keysdevice_signingupload
func (a *api) uploadCrossSigning(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	needed, err := a.Keys.CrossSigningNeedsAuth(c.ctx(), c.userID(), body)
	if err != nil {
		return err
	}
	if needed {
		if ok, err := c.reauthenticate("cross-signing keys", body); !ok {
			return err
		}
	}
	if err := a.Keys.UploadCrossSigning(c.ctx(), c.userID(), body); err != nil {
		return err
	}
	return c.done()
}

func (a *api) uploadSignatures(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	failures, err := a.Keys.UploadSignatures(c.ctx(), c.userID(), body)
	return c.answer(map[string]any{"failures": failures}, err)
}

// Spec v1.19 client-server-api/#send-to-device-messaging
func (a *api) sendToDevice(c *call) error {
	var r struct {
		Messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"messages"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Messages == nil {
		return matrix.MissingParam("messages is missing")
	}
	typ, txn := c.Param("eventType"), c.Param("txnId")
	if typ == "" || txn == "" {
		return matrix.InvalidParam("the event type and the transaction ID must not be empty")
	}
	return c.once("sendToDevice/"+typ+"/"+txn, func() error {
		return a.Keys.SendToDevice(c.ctx(), c.userID(), typ, r.Messages)
	})
}
