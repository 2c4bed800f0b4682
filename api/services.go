package api

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"

	"parley.im/parley/server/matrix"
)

// serviceRoutes point to services beside this server: calls, and networks behind bridges.
func (a *api) serviceRoutes() []route {
	rtc := "/_matrix/client/v1/rtc/transports"
	return []route{
		{method: get, path: client + "/voip/turnServer", handle: a.turnServer},
		{method: get, path: rtc, handle: a.rtcTransports, aliases: []string{"/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"}},
		{method: get, path: client + "/thirdparty/protocols", handle: a.thirdPartyProtocols},
		{method: get, path: client + "/thirdparty/protocol/{protocol}", handle: noBridge},
		{method: get, path: client + "/thirdparty/location", handle: noBridge},
		{method: get, path: client + "/thirdparty/location/{protocol}", handle: noBridge},
		{method: get, path: client + "/thirdparty/user", handle: noBridge},
		{method: get, path: client + "/thirdparty/user/{protocol}", handle: noBridge},
	}
}

// turnServer gives each user a name and password that end with the lifetime, by the convention that coturn calls
// use-auth-secret. Without TURN servers the answer is {}. Spec v1.19 client-server-api/#get_matrixclientv3voipturnserver
func (a *api) turnServer(c *call) error {
	t := a.cfg.TURN
	if len(t.URIs) == 0 {
		return c.done()
	}
	name, password := t.Username, t.Password
	if t.SharedSecret != "" {
		name = fmt.Sprintf("%d:%s", a.Now().Add(t.Lifetime).Unix(), c.userID())
		mac := hmac.New(sha1.New, []byte(t.SharedSecret))
		mac.Write([]byte(name))
		password = base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return c.reply(map[string]any{"username": name, "password": password, "uris": t.URIs, "ttl": int64(t.Lifetime.Seconds())})
}

func (a *api) rtcTransports(c *call) error {
	if len(a.cfg.RTCFoci) == 0 {
		return matrix.NotFound("this server knows no service for group calls")
	}
	return c.reply(map[string]any{"rtc_transports": a.rtcFoci()})
}

func (a *api) rtcFoci() []map[string]string {
	foci := []map[string]string{}
	for _, f := range a.cfg.RTCFoci {
		foci = append(foci, map[string]string{"type": "livekit", "livekit_service_url": f.ServiceURL})
	}
	return foci
}

// There are no bridges yet: the list of networks is empty, and none of them is known.
func (a *api) thirdPartyProtocols(c *call) error { return c.done() }

func noBridge(*call) error { return matrix.NotFound("there is no bridge to such a network") }
