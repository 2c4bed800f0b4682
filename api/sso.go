package api

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/user"
)

// ssoCallback is where providers lead back to; their administrators are told it, so it must not change.
const ssoCallback = "/_matrix/client/unstable/im.parley/login/sso/callback"

// ssoRoutes are signing in with a company account. What is wrong with a request of a client is told in JSON as everywhere; what people
// meet in their browser is a page. Spec v1.19 client-server-api/#sso-client-loginauthentication
func (a *api) ssoRoutes() []route {
	redirect, confirm := client+"/login/sso/redirect", client+"/auth/{authType}/fallback/web"
	return []route{
		{method: get, path: redirect, handle: a.ssoRedirect, auth: anybody, limit: limitOther},
		{method: get, path: redirect + "/{idpId}", handle: a.ssoRedirect, auth: anybody, limit: limitOther},
		{method: get, path: ssoCallback, handle: a.ssoCallback, auth: anybody, limit: limitOther},
		{method: get, path: confirm, handle: a.confirmPage, auth: anybody, limit: limitOther},
		{method: post, path: confirm, handle: a.confirmWithProvider, auth: anybody, limit: limitOther, maxBody: 64 << 10},
	}
}

// SSOCallback is the redirect URI that has to be registered at sign-in providers.
func SSOCallback(cfg Config) string { return cfg.baseURL() + ssoCallback }

// ssoRedirect sends the browser to a provider. Where there are several and the client has chosen none, the person does.
func (a *api) ssoRedirect(c *call) error {
	providers := a.Users.IdentityProviders()
	if len(providers) == 0 {
		return matrix.NotFound("sign-in with a company account is not set up on this server")
	}
	provider := c.Param("idpId")
	if provider == "" && len(providers) > 1 {
		if c.Query("redirectUrl") == "" {
			return matrix.MissingParam("redirectUrl is missing")
		}
		return c.page(http.StatusOK, page{Kind: "choose", Providers: a.linksTo(providers, c.Request.URL.RawQuery)})
	}
	if provider == "" {
		provider = providers[0].ID
	}
	begun, err := a.Users.BeginSSO(c.ctx(), provider, c.Query("redirectUrl"), SSOCallback(a.cfg))
	return c.leave(begun, err, http.StatusFound)
}

func (a *api) linksTo(providers []user.IdentityProvider, query string) (all []link) {
	for _, p := range providers {
		all = append(all, link{Name: p.Name, ID: p.ID, Href: a.cfg.baseURL() + client + "/login/sso/redirect/" + url.PathEscape(p.ID) + "?" + query})
	}
	return all
}

// leave sends the browser to the provider, with a ticket to come back with.
func (c *call) leave(begun *user.SSOBegun, err error, status int) error {
	if err != nil {
		return c.ssoFailed(err)
	}
	http.SetCookie(c.Writer, c.ssoCookie(begun.State, begun.Ticket, int(begun.Lifetime.Seconds())))
	return c.sendTo(begun.Authorize, status)
}

// sendTo sends the browser to an address that only it may know.
func (c *call) sendTo(address string, status int) error {
	c.Header("Cache-Control", "no-store")
	c.Header("Referrer-Policy", "no-referrer")
	c.Redirect(status, address)
	return nil
}

// ssoCookie holds a ticket. Its name depends on the sign-in, so that one in another tab does not take its place, and is one of sixteen,
// so that those that were never finished do not pile up.
func (c *call) ssoCookie(state, ticket string, seconds int) *http.Cookie {
	slot := "0"
	if len(state) > 0 {
		slot = string("0123456789abcdef"[state[0]%16])
	}
	return &http.Cookie{Name: "parley_sso_" + slot, Value: ticket, Path: ssoCallback, MaxAge: seconds, HttpOnly: true,
		Secure: strings.HasPrefix(c.a.cfg.PublicURL, "https:"), SameSite: http.SameSiteLaxMode}
}

// ssoCallback takes up a browser that comes back from a provider.
func (a *api) ssoCallback(c *call) error {
	answer := c.Request.URL.Query()
	cookie := c.ssoCookie(answer.Get("state"), "", -1)
	ticket, err := c.Request.Cookie(cookie.Name)
	if err != nil {
		return c.ssoFailed(&user.SSOError{Reason: user.SSOExpired, Err: errors.New("the browser has no ticket")})
	}
	done, err := a.Users.FinishSSO(c.ctx(), ticket.Value, answer, SSOCallback(a.cfg))
	if err != nil {
		return c.ssoFailed(err)
	}
	http.SetCookie(c.Writer, cookie) // it has served
	a.log.Info("signed in with a company account", "user", done.User, "new", done.New, "request", c.id)
	switch {
	case done.Redirect == "":
		return c.page(http.StatusOK, page{Kind: "confirmed"})
	case a.trustsClient(done.Redirect):
		return c.sendTo(done.Redirect, http.StatusFound)
	}
	// The token is the account: whoever made the link that led here would get it. So the person says that they know the client.
	to, err := url.Parse(done.Redirect)
	if err != nil {
		return err
	}
	name := to.Host
	if to.Scheme != "https" || name == "" {
		name = to.Scheme + ":" // an app
		if to.Host != "" {
			name += "//" + to.Host
		}
	}
	return c.page(http.StatusOK, page{Kind: "trust", User: string(done.User), Client: name, Continue: continueURL(done.Redirect)})
}

// trustsClient reports whether a client gets the login token without a question: the built-in web client, and those of the configuration
// with what lies below their paths.
func (a *api) trustsClient(redirect string) bool {
	to, err := url.Parse(redirect)
	if err != nil || to.Opaque != "" || strings.Contains(to.Path, "..") { // a browser would go up
		return false
	}
	return slices.ContainsFunc(append([]string{a.cfg.PublicURL}, a.cfg.SSOClients...), func(trusted string) bool {
		t, err := url.Parse(trusted)
		if err != nil || t.Scheme != to.Scheme || !strings.EqualFold(t.Host, to.Host) {
			return false
		}
		path := strings.TrimRight(t.Path, "/")
		return to.Path == path || strings.HasPrefix(to.Path, path+"/")
	})
}

// confirmPage asks whether a sensitive request is to be confirmed with the company account.
// Spec v1.19 client-server-api/#fallback
func (a *api) confirmPage(c *call) error {
	if c.Param("authType") != "m.login.sso" {
		return matrix.NotFound("there is no page for the authentication type %q", c.Param("authType"))
	}
	session := c.Query("session")
	if session == "" {
		return matrix.MissingParam("session is missing")
	}
	asked, err := a.Users.Confirmation(c.ctx(), session)
	if err != nil {
		return c.ssoFailed(err)
	}
	p := page{Kind: "confirm", User: string(asked.User), Operation: operationName(asked.Operation), Session: session}
	for _, provider := range asked.Providers {
		p.Providers = append(p.Providers, link{ID: provider.ID, Name: provider.Name})
	}
	return c.page(http.StatusOK, p)
}

// operationName is what a request is called on the page, without what differs from one to the next.
func operationName(operation string) string {
	if strings.HasPrefix(operation, "delete device") {
		return "delete devices"
	}
	return operation
}

// confirmWithProvider is the button of that page. Another site must not press it: the person would confirm what they have not read.
func (a *api) confirmWithProvider(c *call) error {
	if err := http.NewCrossOriginProtection().Check(c.Request); err != nil {
		return matrix.Forbidden("this form can be sent by this server's own page only")
	}
	if c.Param("authType") != "m.login.sso" {
		return matrix.NotFound("there is no page for the authentication type %q", c.Param("authType"))
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || !isText(string(body)) {
		return matrix.BadRequest("the body is not a form")
	}
	begun, err := a.Users.BeginConfirmation(c.ctx(), form.Get("provider"), form.Get("session"), SSOCallback(a.cfg))
	return c.leave(begun, err, http.StatusSeeOther)
}

// ssoFailed shows the person what went wrong; clients' mistakes stay errors.
func (c *call) ssoFailed(err error) error {
	var failed *user.SSOError
	if !errors.As(err, &failed) {
		return err
	}
	status := http.StatusForbidden
	p := page{Kind: string(failed.Reason), Home: c.a.cfg.baseURL() + "/"}
	switch failed.Reason {
	case user.SSOExpired:
		status = http.StatusBadRequest
	case user.SSOUnavailable:
		status, p.Request = http.StatusBadGateway, c.id
		c.a.log.Warn("sign-in with a company account", "request", c.id, "err", failed.Err)
	case user.SSORefused, user.SSONoAccount:
		p.Request = c.id
		c.a.log.Info("sign-in with a company account", "request", c.id, "reason", failed.Reason, "err", failed.Err)
	}
	c.errcode = string(failed.Reason)
	return c.page(status, p)
}

// page shows a page to a person.
func (c *call) page(status int, p page) error {
	var b bytes.Buffer
	if err := p.write(&b, c.GetHeader("Accept-Language")); err != nil {
		return err
	}
	c.Header("Content-Security-Policy", pagePolicy)
	c.Header("Cache-Control", "no-store")
	c.Header("Referrer-Policy", "no-referrer")
	c.Header("X-Content-Type-Options", "nosniff")
	c.Header("X-Frame-Options", "DENY")
	c.Data(status, "text/html; charset=utf-8", b.Bytes())
	return nil
}
