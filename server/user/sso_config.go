package user

import (
	"fmt"
	"net"
	"net/url"
	"slices"
)

// SSOConfig lets people in with the account that they have with their company.
type SSOConfig struct {
	// Providers are where these accounts are: Keycloak, Entra ID, Google, Okta, authentik or whatever else speaks OpenID Connect.
	// client_api.public_url must be set; the redirect URI to be registered there is
	// PUBLIC_URL/_matrix/client/unstable/im.parley/login/sso/callback.
	Providers []SSOProvider `mapstructure:"providers" yaml:"providers"`
}

// SSOProvider is an OpenID provider.
type SSOProvider struct {
	// ID names it in addresses: 1 to 64 characters of a-z, A-Z, 0-9 and . _ ~ -
	ID string `mapstructure:"id" yaml:"id"`
	// Name is what people read on the button.
	Name string `mapstructure:"name" yaml:"name"`
	// Brand helps clients to choose a picture: google, github, gitlab, apple, facebook or twitter. May be empty.
	Brand string `mapstructure:"brand" yaml:"brand"`
	// Issuer is the provider's URL; /.well-known/openid-configuration is below it. http:// only on this machine.
	Issuer string `mapstructure:"issuer" yaml:"issuer"`
	// ClientID is what the provider calls this server.
	ClientID string `mapstructure:"client_id" yaml:"client_id"`
	// ClientSecretFile is a file with the client's secret and nothing else. Empty: a public client, which has none.
	ClientSecretFile string `mapstructure:"client_secret_file" yaml:"client_secret_file"`
	// Scopes are what the provider is asked for; empty: openid, profile and email.
	Scopes []string `mapstructure:"scopes" yaml:"scopes"`
	// UserNameClaim becomes the user name of a new account, of an e-mail address what stands before the @; empty: preferred_username.
	UserNameClaim string `mapstructure:"user_name_claim" yaml:"user_name_claim"`
	// DisplayNameClaim becomes the name by which others see a new account; empty: name.
	DisplayNameClaim string `mapstructure:"display_name_claim" yaml:"display_name_claim"`
	// Require says who may sign in: all entries must hold, each a claim (groups, hd; realm_access.roles is roles within realm_access) and
	// values, of which it must have one. Empty is everybody who has an account there, which for a public provider is everybody.
	Require []SSORequirement `mapstructure:"require" yaml:"require"`
	// Administrators says who is an administrator of this server, anew at each sign-in: entries as of require, all of which must hold.
	// Empty changes nothing.
	Administrators []SSORequirement `mapstructure:"administrators" yaml:"administrators"`
	// ExistingOnly makes no accounts: those who have signed in before can do it again.
	ExistingOnly bool `mapstructure:"existing_only" yaml:"existing_only"`
	// AdoptAccounts gives an account that was made here to whoever the provider calls by its name, for companies that move to sign-in
	// of this kind. Only where people cannot choose that name themselves.
	AdoptAccounts bool `mapstructure:"adopt_accounts" yaml:"adopt_accounts"`
}

// SSORequirement is something that must be true of a person.
type SSORequirement struct {
	// Claim is the name of a claim.
	Claim string `mapstructure:"claim" yaml:"claim"`
	// Values are those of which it must have one.
	Values []string `mapstructure:"values" yaml:"values"`
}

// Validate says what is wrong with it.
func (c SSOConfig) Validate() error {
	seen := map[string]bool{}
	for i, p := range c.Providers {
		issuer, err := url.Parse(p.Issuer)
		switch {
		case !isOpaqueID(p.ID, 64):
			return fmt.Errorf("sso.providers: the id of provider %d must be 1 to 64 characters of a-z, A-Z, 0-9 and . _ ~ -", i+1)
		case seen[p.ID]:
			return fmt.Errorf("sso.providers: two providers have the id %s", p.ID)
		case p.Name == "":
			return fmt.Errorf("sso.providers: %s needs a name, which people read on the button", p.ID)
		case p.ClientID == "":
			return fmt.Errorf("sso.providers: %s needs a client_id, which its administrator gives out", p.ID)
		case err != nil || issuer.Host == "" || issuer.RawQuery != "" || issuer.Fragment != "" || issuer.User != nil:
			return fmt.Errorf("sso.providers: the issuer of %s must be a URL such as https://login.example.com", p.ID)
		case issuer.Scheme != "https" && !(issuer.Scheme == "http" && isLoopback(issuer.Hostname())):
			return fmt.Errorf("sso.providers: the issuer of %s must be an https:// URL: what it says is who people are", p.ID)
		}
		for _, r := range slices.Concat(p.Require, p.Administrators) {
			if r.Claim == "" || len(r.Values) == 0 {
				return fmt.Errorf("sso.providers: each entry of require and administrators of %s needs a claim and at least one of values", p.ID)
			}
		}
		seen[p.ID] = true
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (p SSOProvider) scopes() []string {
	if len(p.Scopes) == 0 {
		return []string{"openid", "profile", "email"}
	}
	if !slices.Contains(p.Scopes, "openid") {
		return append([]string{"openid"}, p.Scopes...)
	}
	return p.Scopes
}

func (p SSOProvider) userNameClaim() string {
	if p.UserNameClaim == "" {
		return "preferred_username"
	}
	return p.UserNameClaim
}

func (p SSOProvider) displayNameClaim() string {
	if p.DisplayNameClaim == "" {
		return "name"
	}
	return p.DisplayNameClaim
}
