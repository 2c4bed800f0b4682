package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "parley.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigIsRefusedWithTheLineAndTheNearestKey(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"misspelt", "server_nmae: x.org", `parley.yaml:1: unknown option "server_nmae"; did you mean "server_name"?`},
		{"misspelt in a section", "listen: :8008\ntls:\n  lisen: :8448", `parley.yaml:3: unknown option "tls.lisen"; did you mean "tls.listen"?`},
		{"misspelt in a list", "federation:\n  peers:\n  - sever: x.org", `parley.yaml:3: unknown option "federation.peers.sever"; did you mean "federation.peers.server"?`},
		{"other case", "Listen: :8008", `did you mean "listen"?`},
		{"twice", "listen: :8008\nlisten: :8009", "given twice"},
		{"section as value", "tls: yes", `"tls" is a section`},
		{"list as map", "federation:\n  peers:\n    server: x.org", `"federation.peers" is a list`},
		{"wrong type", "sync:\n  cache: 12", "unknown option"},
		{"no duration", "shutdown_timeout: soon", "shutdown_timeout"},
		{"bad server name", "server_name: 'a b'", "server_name"},
		{"bad address", "listen: '8008'", "listen"},
		{"tls without certificate", "tls:\n  listen: :8448", "tls.certificate"},
		{"bad level", "log:\n  level: loud", "log.level"},
		{"no YAML", "listen: [", "parley.yaml"},
		{"provider without address of this server", "users:\n  sso:\n    providers:\n      - {id: a, name: A, issuer: 'https://x.org', client_id: c}", "client_api.public_url"},
		{"provider without encryption", "users:\n  sso:\n    providers:\n      - {id: a, name: A, issuer: 'http://x.org', client_id: c}", "https://"},
		{"two providers of one name", "users:\n  sso:\n    providers:\n      - {id: a, name: A, issuer: 'https://x.org', client_id: c}\n      - {id: a, name: B, issuer: 'https://y.org', client_id: c}", "two providers"},
		{"misspelt in a provider", "users:\n  sso:\n    providers:\n      - require:\n          - {claim: hd, value: x}", `unknown option "users.sso.providers.require.value"; did you mean "users.sso.providers.require.values"?`},
		{"nobody could sign in", "users:\n  password_login: false", "nobody could sign in"},
		{"bad policy", "federation:\n  signatures: maybe", "federation.signatures"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := loadConfig(writeFile(t, test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %s", err, test.want)
			}
		})
	}
}

func TestEnvironmentOverridesTheFile(t *testing.T) {
	t.Setenv("PARLEY_SERVER_NAME", "env.example.org")
	t.Setenv("PARLEY_SHUTDOWN_TIMEOUT", "7s")
	t.Setenv("PARLEY_FEDERATION_DENY", "a.org,b.org")
	t.Setenv("PARLEY_SERVER_NMAE", "x")
	cfg, warnings, err := loadConfig(writeFile(t, "server_name: file.example.org\nlog:\n  level: debug"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.ServerName != "env.example.org" || cfg.ShutdownTimeout != 7*time.Second || cfg.Log.Level != "debug" ||
		!reflect.DeepEqual(cfg.Federation.Deny, []string{"a.org", "b.org"}) {
		t.Errorf("got %+v", cfg)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "did you mean PARLEY_SERVER_NAME?") {
		t.Errorf("got warnings %q", warnings)
	}
}

func TestEmptyFileAndNoFileAreTheDefaults(t *testing.T) {
	for _, path := range []string{"", writeFile(t, ""), writeFile(t, "# nothing\n")} {
		cfg, _, err := loadConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		want := DefaultConfig()
		if err := want.complete(); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(cfg, want) {
			t.Errorf("%q: got %+v, want %+v", path, cfg, want)
		}
	}
}
