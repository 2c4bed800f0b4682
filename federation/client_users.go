package federation

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
)

// QueryProfile: see user.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1queryprofile
func (c *Client) QueryProfile(ctx context.Context, server matrix.ServerName, user matrix.UserID, field string) (answer map[string]json.RawMessage, err error) {
	query := url.Values{"user_id": {string(user)}}
	if field != "" {
		query.Set("field", field)
	}
	err = c.call(ctx, request{server: server, method: http.MethodGet, path: v1 + "/query/profile?" + query.Encode()}, &answer)
	return answer, err
}

// QueryKeys: see keys.Remote. Spec v1.19 server-server-api/#post_matrixfederationv1userkeysquery
func (c *Client) QueryKeys(ctx context.Context, server matrix.ServerName, devices map[matrix.UserID][]matrix.DeviceID) (*keys.QueryResult, error) {
	query := make(map[matrix.UserID][]matrix.DeviceID, len(devices))
	for user, list := range devices {
		query[user] = append([]matrix.DeviceID{}, list...) // null is not a list
	}
	body, err := encode(map[string]any{"device_keys": query})
	if err != nil {
		return nil, err
	}
	answer := &keys.QueryResult{}
	err = c.call(ctx, request{server: server, method: http.MethodPost, path: v1 + "/user/keys/query", body: body}, answer)
	return answer, err
}

// ClaimKeys: see keys.Remote. Spec v1.19 server-server-api/#post_matrixfederationv1userkeysclaim
func (c *Client) ClaimKeys(ctx context.Context, server matrix.ServerName, want keys.Claim) (*keys.ClaimResult, error) {
	body, err := encode(map[string]any{"one_time_keys": want})
	if err != nil {
		return nil, err
	}
	answer := &keys.ClaimResult{}
	err = c.call(ctx, request{server: server, method: http.MethodPost, path: v1 + "/user/keys/claim", body: body}, answer)
	return answer, err
}

// UserDevices: see keys.Remote. Spec v1.19 server-server-api/#get_matrixfederationv1userdevicesuserid
func (c *Client) UserDevices(ctx context.Context, server matrix.ServerName, user matrix.UserID) (*keys.UserDevices, error) {
	answer := &keys.UserDevices{}
	err := c.call(ctx, request{server: server, method: http.MethodGet, path: escape(v1+"/user/devices", string(user))}, answer)
	return answer, err
}
