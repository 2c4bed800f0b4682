package api

import (
	"parley.im/parley/server/matrix"
)

// discoveryRoutes tell clients what this server is and can. Spec v1.19 client-server-api/#server-discovery
func (a *api) discoveryRoutes() []route {
	return []route{
		{method: get, path: "/_matrix/client/versions", handle: a.versions, auth: anybody},
		{method: get, path: "/.well-known/matrix/client", handle: a.wellKnownClient, auth: anybody},
		{method: get, path: "/.well-known/matrix/server", handle: a.wellKnownServer, auth: anybody},
		{method: get, path: "/.well-known/matrix/support", handle: a.wellKnownSupport, auth: anybody},
		{method: get, path: client + "/capabilities", handle: a.capabilities, suspended: true},
	}
}

// specVersions are the versions of the specification that clients find here. Version by version, what each added is
// served or optional; clients look features up by version, and refuse servers that list only new ones.
var specVersions = []string{
	"r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1",
	"v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13",
	"v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
}

// unstableFeatures are those that work here, under the names by which clients that do not look at the versions know them.
var unstableFeatures = map[string]bool{
	"org.matrix.msc2285.stable":                      true, // private read receipts
	"org.matrix.msc3440.stable":                      true, // threads
	"org.matrix.msc3771":                             true, // receipts in threads
	"org.matrix.msc3773":                             true, // unread counts of threads
	"org.matrix.msc3827.stable":                      true, // room types in the directory
	"org.matrix.msc3814":                             true, // dehydrated devices
	"org.matrix.msc3916.stable":                      true, // media needs a token
	"org.matrix.msc4222":                             true, // state_after in /sync
	"uk.tcpip.msc4133":                               true, // profile fields
	"uk.tcpip.msc4133.stable":                        true,
	"uk.half-shot.msc2666.query_mutual_rooms":        true,
	"uk.half-shot.msc2666.query_mutual_rooms.stable": true,
	"org.matrix.e2e_cross_signing":                   true,
	"org.matrix.simplified_msc3575":                  true, // sliding sync, which Element X needs
}

func (a *api) versions(c *call) error {
	return c.reply(map[string]any{"versions": specVersions, "unstable_features": unstableFeatures})
}

// wellKnownClient also names the services for calls in the place where Element Call and FluffyChat look.
func (a *api) wellKnownClient(c *call) error {
	if a.cfg.PublicURL == "" {
		return matrix.NotFound("this server does not announce its address")
	}
	answer := map[string]any{"m.homeserver": map[string]string{"base_url": a.cfg.baseURL()}}
	if len(a.cfg.RTCFoci) > 0 {
		answer["org.matrix.msc4143.rtc_foci"] = a.rtcFoci()
	}
	return c.reply(answer)
}

func (a *api) wellKnownServer(c *call) error {
	if a.cfg.FederationAddress == "" {
		return matrix.NotFound("this server does not announce its address")
	}
	return c.reply(map[string]string{"m.server": a.cfg.FederationAddress})
}

func (a *api) wellKnownSupport(c *call) error {
	if len(a.cfg.SupportContacts) == 0 && a.cfg.SupportPage == "" {
		return matrix.NotFound("this server announces nobody to turn to")
	}
	answer := map[string]any{"contacts": a.cfg.SupportContacts}
	if a.cfg.SupportPage != "" {
		answer["support_page"] = a.cfg.SupportPage
	}
	return c.reply(answer)
}

// Spec v1.19 client-server-api/#capabilities-negotiation
func (a *api) capabilities(c *call) error {
	type flag struct {
		Enabled bool `json:"enabled"`
	}
	available := map[string]string{}
	for _, v := range matrix.RoomVersions() {
		available[v.ID] = "stable"
	}
	password, err := a.Users.CanChangePassword(c.ctx(), c.userID())
	if err != nil {
		return err
	}
	answer := map[string]any{
		"m.change_password":          flag{password},
		"m.set_displayname":          flag{true},
		"m.set_avatar_url":           flag{true},
		"m.profile_fields":           flag{true},
		"m.3pid_changes":             flag{false},
		"m.get_login_token":          flag{true},
		"m.forget_forced_upon_leave": flag{false},
		"im.parley.voice.live":       flag{a.Voice.LiveEnabled()},
		"m.room_versions": map[string]any{
			"default":   a.DefaultRoomVersion,
			"available": available,
		},
	}
	if c.session.Admin {
		answer["m.account_moderation"] = map[string]bool{"lock": true, "suspend": true}
	}
	return c.reply(map[string]any{"capabilities": answer})
}
