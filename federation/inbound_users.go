package federation

import (
	"encoding/json"
	"time"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Limits of requests about keys.
const (
	maxQueriedUsers   = 1000
	maxQueriedServers = 100
)

// Spec v1.19 server-server-api/#get_matrixfederationv1version
func (c *call) version() (any, error) {
	return map[string]any{"server": map[string]string{"name": "Parley", "version": c.h.Version}}, nil
}

// Spec v1.19 server-server-api/#get_matrixfederationv1openiduserinfo
func (c *call) userInfo() (any, error) {
	token := c.Query("access_token")
	if token == "" {
		return nil, matrix.MissingToken("access_token is missing")
	}
	user, err := c.h.Users.OpenIDUser(c.ctx(), token)
	if err != nil {
		return nil, err
	}
	return map[string]matrix.UserID{"sub": user}, nil
}

// Spec v1.19 server-server-api/#get_matrixfederationv1queryprofile
func (c *call) queryProfile() (any, error) {
	if !c.h.cfg.ProfileQueries {
		return nil, matrix.Forbidden("this server does not tell other servers about its users")
	}
	s, ok := c.GetQuery("user_id")
	if !ok {
		return nil, matrix.MissingParam("user_id is missing")
	}
	user, err := c.localUser(s)
	if err != nil {
		return nil, err
	}
	profile, err := c.h.Users.LocalProfile(c.ctx(), user)
	if err != nil {
		return nil, err
	}
	field, ok := c.GetQuery("field")
	if !ok || field == "" {
		if profile == nil {
			profile = map[string]json.RawMessage{}
		}
		return profile, nil
	}
	value, ok := profile[field]
	if !ok {
		return nil, matrix.NotFound("the user has no %s", field)
	}
	return map[string]json.RawMessage{field: value}, nil
}

// Spec v1.19 server-server-api/#get_matrixfederationv1userdevicesuserid
func (c *call) userDevices() (any, error) {
	s, err := c.param("userID")
	if err != nil {
		return nil, err
	}
	user, err := c.localUser(s)
	if err != nil {
		return nil, err
	}
	devices, err := c.h.Keys.LocalUserDevices(c.ctx(), user)
	if err != nil {
		return nil, err
	}
	devices.Devices = list(devices.Devices)
	return devices, nil
}

// Spec v1.19 server-server-api/#post_matrixfederationv1userkeysquery
func (c *call) deviceKeys() (any, error) {
	var body struct {
		DeviceKeys map[matrix.UserID][]matrix.DeviceID `json:"device_keys"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if body.DeviceKeys == nil {
		return nil, matrix.MissingParam("device_keys is missing")
	}
	if err := checkLocal(c, body.DeviceKeys); err != nil {
		return nil, err
	}
	result, err := c.h.Keys.LocalQuery(c.ctx(), body.DeviceKeys)
	if err != nil {
		return nil, err
	}
	result.UserSigningKeys, result.Failures = nil, nil
	if result.DeviceKeys == nil {
		result.DeviceKeys = map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{}
	}
	return result, nil
}

// Spec v1.19 server-server-api/#post_matrixfederationv1userkeysclaim
func (c *call) claimKeys() (any, error) {
	var body struct {
		OneTimeKeys keys.Claim `json:"one_time_keys"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if body.OneTimeKeys == nil {
		return nil, matrix.MissingParam("one_time_keys is missing")
	}
	if err := checkLocal(c, body.OneTimeKeys); err != nil {
		return nil, err
	}
	result, err := c.h.Keys.LocalClaim(c.ctx(), body.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	result.Failures = nil
	if result.OneTimeKeys == nil {
		result.OneTimeKeys = map[matrix.UserID]map[matrix.DeviceID]map[matrix.KeyID]json.RawMessage{}
	}
	return result, nil
}

// checkLocal drops users of other servers: they were asked for in error, and the rest is still of use.
func checkLocal[T any](c *call, byUser map[matrix.UserID]T) error {
	if len(byUser) > maxQueriedUsers {
		return matrix.InvalidParam("more than %d users", maxQueriedUsers)
	}
	for user := range byUser {
		if id, err := matrix.ParseUserID(string(user)); err != nil || id.Server() != c.h.server {
			delete(byUser, user)
		}
	}
	return nil
}

// Spec v1.19 server-server-api/#get_matrixkeyv2server
func (c *call) ownKeys() (any, error) { return c.h.Client.keys.publish() }

// Spec v1.19 server-server-api/#get_matrixkeyv2queryservername
func (c *call) queryKeysOf() (any, error) {
	s, err := c.param("serverName")
	if err != nil {
		return nil, err
	}
	server, err := matrix.ParseServerName(s)
	if err != nil {
		return nil, matrix.InvalidParam("%s", err)
	}
	minimum, err := c.number("minimum_valid_until_ts", 0)
	if err != nil {
		return nil, err
	}
	return c.statements(map[matrix.ServerName]time.Time{server: time.UnixMilli(minimum)})
}

// Spec v1.19 server-server-api/#post_matrixkeyv2query
func (c *call) queryKeys() (any, error) {
	var body struct {
		ServerKeys map[string]map[string]struct {
			Minimum int64 `json:"minimum_valid_until_ts"`
		} `json:"server_keys"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if body.ServerKeys == nil {
		return nil, matrix.MissingParam("server_keys is missing")
	}
	if len(body.ServerKeys) > maxQueriedServers {
		return nil, matrix.InvalidParam("more than %d servers", maxQueriedServers)
	}
	wanted := map[matrix.ServerName]time.Time{}
	for s, byKey := range body.ServerKeys {
		server, err := matrix.ParseServerName(s)
		if err != nil {
			return nil, matrix.InvalidParam("%s", err)
		}
		minimum := c.h.now()
		for _, key := range byKey {
			if m := time.UnixMilli(key.Minimum); m.After(minimum) {
				minimum = m
			}
		}
		wanted[server] = minimum
	}
	return c.statements(wanted)
}

// statements answers as a notary, asking the servers side by side. What cannot be had is left out.
func (c *call) statements(wanted map[matrix.ServerName]time.Time) (any, error) {
	type result struct {
		raw []byte
		err error
	}
	results := make(chan result, len(wanted))
	asked := 0
	for server, minimum := range wanted {
		if server != c.h.server && !c.h.cfg.permits(server) {
			continue
		}
		asked++
		go func() {
			raw, err := c.h.Client.keys.query(c.ctx(), server, minimum)
			results <- result{raw, err}
		}()
	}
	statements := []json.RawMessage{}
	var failure error
	for range asked { // every goroutine is waited for
		switch r := <-results; {
		case r.err != nil:
			failure = r.err
		case r.raw != nil:
			statements = append(statements, r.raw)
		}
	}
	if failure != nil && len(statements) == 0 && failure != storage.ErrNotFound {
		return nil, failure
	}
	return map[string]any{"server_keys": statements}, nil
}
