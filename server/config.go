package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"parley.im/parley/api"
	"parley.im/parley/federation"
	"parley.im/parley/server/keys"
	"parley.im/parley/server/matrix"
	"parley.im/parley/server/media"
	"parley.im/parley/server/push"
	"parley.im/parley/server/room"
	"parley.im/parley/server/syncer"
	"parley.im/parley/server/user"
	"parley.im/parley/server/voice"
	"parley.im/parley/storage"
)

// Config is the whole configuration: what concerns this process, and a section for each room of the house.
type Config struct {
	// ServerName is the part after the colon of all user IDs of this server. It can never change.
	ServerName string `mapstructure:"server_name"`
	// DataDir holds the signing key, the media and, with SQLite, the database.
	DataDir string `mapstructure:"data_dir"`
	// Listen is the address for HTTP: both APIs, for clients and for other servers, usually behind a reverse proxy.
	Listen string `mapstructure:"listen"`
	// TLS serves the same with a certificate of its own, for a server without a reverse proxy.
	TLS TLSConfig `mapstructure:"tls"`
	// Metrics for Prometheus, and profiles (/debug/pprof) for whoever looks into a slow server.
	Metrics MetricsConfig `mapstructure:"metrics"`
	// Log on standard error.
	Log LogConfig `mapstructure:"log"`
	// ShutdownTimeout is how long requests under way may take when the server is stopped.
	ShutdownTimeout time.Duration `mapstructure:"shutdown_timeout"`

	// Database: SQLite in data_dir by default; PostgreSQL for a larger company.
	Database storage.Config `mapstructure:"database"`
	// Users: accounts, registration, passwords, tokens.
	Users user.Config `mapstructure:"users"`
	// Keys for end-to-end encryption, and messages from device to device.
	Keys keys.Config `mapstructure:"keys"`
	// Push notifications.
	Push push.Config `mapstructure:"push"`
	// Media: files and voice messages.
	Media media.Config `mapstructure:"media"`
	// Rooms.
	Rooms room.Config `mapstructure:"rooms"`
	// Sync: how clients are told what is new; presence and typing.
	Sync syncer.Config `mapstructure:"sync"`
	// Blobs: where the bytes of media are, in data_dir by default.
	Blobs storage.BlobConfig `mapstructure:"blobs"`
	// Voice messages.
	Voice voice.Config `mapstructure:"voice"`
	// ClientAPI: what clients meet at the door.
	ClientAPI api.Config `mapstructure:"client_api"`
	// Web is the built-in web client, served at /.
	Web WebConfig `mapstructure:"web"`
	// Federation: how this server and others meet.
	Federation federation.Config `mapstructure:"federation"`
	// Outgoing: where links and push gateways may lead, which users name.
	Outgoing OutgoingConfig `mapstructure:"outgoing"`
}

// OutgoingConfig bounds the requests that users can have this server make, for link previews and push notifications.
// What may be reached for federation is in its own section: users must not be able to look around in a company's network
// because its servers are in it.
type OutgoingConfig struct {
	// AllowPrivateAddresses lets them reach loopback and private addresses.
	AllowPrivateAddresses bool `mapstructure:"allow_private_addresses"`
	// AllowAddresses lists addresses and ranges ("10.1.0.0/16") that may be reached although they are private, such as
	// that of a push gateway of your own.
	AllowAddresses []string `mapstructure:"allow_addresses"`
}

// TLSConfig is a listener with TLS; off while Listen is empty.
type TLSConfig struct {
	// Listen is the address, such as 0.0.0.0:8448, which is where other servers look by default.
	Listen string `mapstructure:"listen"`
	// Certificate is a PEM file, the chain included. It is read again when it changes.
	Certificate string `mapstructure:"certificate"`
	// Key is the PEM file with the certificate's key.
	Key string `mapstructure:"key"`
}

// MetricsConfig is where /metrics and /debug/pprof are; off while Listen is empty. There is no authentication.
type MetricsConfig struct {
	// Listen is the address, such as 127.0.0.1:9100. There is no authentication: keep it on an inner address.
	Listen string `mapstructure:"listen"`
}

// WebConfig is about the built-in web client.
type WebConfig struct {
	// Enabled serves it. Other clients work without it.
	Enabled bool `mapstructure:"enabled"`
}

// LogConfig is what is logged, and how.
type LogConfig struct {
	// Level is debug, info, warn or error.
	Level string `mapstructure:"level"`
	// Format is text (for people) or json (for machines).
	Format string `mapstructure:"format"`
}

// DefaultConfig is what holds where neither the file nor the environment says anything.
func DefaultConfig() *Config {
	return &Config{
		ServerName:      "localhost",
		DataDir:         "data",
		Listen:          "127.0.0.1:8008",
		Log:             LogConfig{Level: "info", Format: "text"},
		ShutdownTimeout: 15 * time.Second,
		Web:             WebConfig{Enabled: true},
		Users:           user.DefaultConfig(),
		Keys:            keys.DefaultConfig(),
		Push:            push.DefaultConfig(),
		Media:           media.DefaultConfig(),
		Rooms:           room.DefaultConfig(),
		Sync:            syncer.DefaultConfig(),
		Voice:           voice.DefaultConfig(),
		ClientAPI:       api.DefaultConfig(),
		Federation:      federation.DefaultConfig(),
		Outgoing:        OutgoingConfig{AllowAddresses: []string{}},
	}
}

// complete fills in what follows from other options, and validates the whole.
func (c *Config) complete() error {
	if c.Database.URL == "" {
		c.Database.URL = "sqlite:" + filepath.Join(c.DataDir, "parley.db")
	}
	if _, err := matrix.ParseServerName(c.ServerName); err != nil {
		return fmt.Errorf("server_name: %w", err)
	}
	if c.Listen == "" && c.TLS.Listen == "" {
		return errors.New("listen and tls.listen are both empty: nobody could reach this server")
	}
	for _, option := range []struct{ name, address string }{{"listen", c.Listen}, {"tls.listen", c.TLS.Listen}, {"metrics.listen", c.Metrics.Listen}} {
		if option.address == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(option.address); err != nil {
			return fmt.Errorf("%s: %q is not an address with a port, such as 127.0.0.1:8008", option.name, option.address)
		}
	}
	if c.TLS.Listen != "" && (c.TLS.Certificate == "" || c.TLS.Key == "") {
		return errors.New("tls.listen needs tls.certificate and tls.key")
	}
	if c.ShutdownTimeout <= 0 {
		return errors.New("shutdown_timeout must be longer than 0")
	}
	if _, err := c.Log.level(); err != nil {
		return err
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log.format: %q is not text or json", c.Log.Format)
	}
	if err := c.Users.SSO.Validate(); err != nil {
		return fmt.Errorf("users.%w", err)
	}
	if len(c.Users.SSO.Providers) > 0 && c.ClientAPI.PublicURL == "" {
		return errors.New("users.sso needs client_api.public_url: providers lead people back to this server there")
	}
	if !c.Users.PasswordLogin && len(c.Users.SSO.Providers) == 0 {
		return errors.New("users.password_login is off, but users.sso has no providers: nobody could sign in")
	}
	for _, client := range c.ClientAPI.SSOClients {
		if u, err := url.Parse(client); err != nil || u.Scheme == "" || u.Host == "" {
			return fmt.Errorf("client_api.sso_clients: %q is not an address such as https://app.element.io/", client)
		}
	}
	if err := c.Voice.Validate(); err != nil {
		return fmt.Errorf("voice.%w", err)
	}
	if err := c.Rooms.Retention.Validate(); err != nil {
		return fmt.Errorf("rooms.retention.%w", err)
	}
	return c.Federation.Validate()
}

func (c LogConfig) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return 0, fmt.Errorf("log.level: %q is not debug, info, warn or error", c.Level)
	}
	return level, nil
}

// loadConfig reads the YAML file (none when path is empty), lays environment variables PARLEY_… over it, fills in the
// defaults and validates the whole. Warnings are for the log, once there is one.
//
// It is strict, since a misspelt option that is ignored is worse than a server that does not start: an unknown key is an
// error with the line and the nearest known key. Environment variables are only warned about, because container platforms
// make some of their own with any prefix.
func loadConfig(path string) (cfg *Config, warnings []string, err error) {
	v := viper.New()
	defaults := DefaultConfig()
	known := map[string]reflect.Type{}
	setDefaults(v, known, "", reflect.ValueOf(*defaults))
	v.SetEnvPrefix("PARLEY")
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_"))
	v.AutomaticEnv()
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		if err := checkKeys(path, text); err != nil {
			return nil, nil, err
		}
		v.SetConfigFile(path)
		v.SetConfigType("yaml")
		if err := v.ReadInConfig(); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	warnings = unknownEnvironment(known)
	cfg = DefaultConfig()
	decode := viper.DecodeHook(mapstructure.ComposeDecodeHookFunc(
		mapstructure.StringToTimeDurationHookFunc(), mapstructure.StringToSliceHookFunc(",")))
	if err := v.UnmarshalExact(cfg, decode, func(d *mapstructure.DecoderConfig) { d.ZeroFields = true }); err != nil {
		return nil, warnings, configError(path, err)
	}
	if err := cfg.complete(); err != nil {
		return nil, warnings, configError(path, err)
	}
	return cfg, warnings, nil
}

func configError(path string, err error) error {
	if path == "" {
		return fmt.Errorf("configuration: %w", err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// setDefaults tells viper every option there is: without a default it would not look for the environment variable.
func setDefaults(v *viper.Viper, known map[string]reflect.Type, prefix string, value reflect.Value) {
	for i := range value.NumField() {
		name, ok := optionName(value.Type().Field(i))
		if !ok {
			continue
		}
		field := value.Field(i)
		if field.Kind() == reflect.Struct {
			setDefaults(v, known, prefix+name+".", field)
			continue
		}
		known[prefix+name] = field.Type()
		v.SetDefault(prefix+name, field.Interface())
	}
}

// optionName is the name of a field in the file.
func optionName(field reflect.StructField) (string, bool) {
	name, _, _ := strings.Cut(field.Tag.Get("mapstructure"), ",")
	return name, field.IsExported() && name != "" && name != "-"
}

// checkKeys finds keys that no option has, keys given twice, and keys that differ from an option only by case (viper would
// take those for the same).
func checkKeys(path string, text []byte) error {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(document.Content) == 0 {
		return nil // an empty file: all defaults
	}
	var errs []error
	checkNode(path, "", document.Content[0], reflect.TypeFor[Config](), &errs)
	return errors.Join(errs...)
}

func checkNode(path, prefix string, node *yaml.Node, t reflect.Type, errs *[]error) {
	report := func(n *yaml.Node, format string, args ...any) {
		*errs = append(*errs, fmt.Errorf("%s:%d: %s", path, n.Line, fmt.Sprintf(format, args...)))
	}
	switch {
	case node.Kind == yaml.AliasNode:
		checkNode(path, prefix, node.Alias, t, errs)
	case t.Kind() == reflect.Slice && node.Kind == yaml.SequenceNode:
		for _, item := range node.Content {
			checkNode(path, prefix, item, t.Elem(), errs)
		}
	case t.Kind() == reflect.Struct && node.Kind == yaml.MappingNode:
		fields := map[string]reflect.Type{}
		for i := range t.NumField() {
			if name, ok := optionName(t.Field(i)); ok {
				fields[name] = t.Field(i).Type
			}
		}
		seen := map[string]bool{}
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i]
			field, ok := fields[key.Value]
			switch {
			case !ok:
				report(key, "unknown option %q; did you mean %q?", prefix+key.Value, prefix+nearest(key.Value, fields))
				continue
			case seen[key.Value]:
				report(key, "option %q is given twice", prefix+key.Value)
			}
			seen[key.Value] = true
			checkNode(path, prefix+key.Value+".", node.Content[i+1], field, errs)
		}
	case t.Kind() == reflect.Struct && node.Tag != "!!null":
		report(node, "%q is a section with options of its own, not a single value", strings.TrimSuffix(prefix, "."))
	case t.Kind() == reflect.Slice && node.Kind == yaml.MappingNode:
		report(node, "%q is a list: write each entry on a line that starts with a dash", strings.TrimSuffix(prefix, "."))
	}
}

// nearest is the known key that takes the fewest edits to reach.
func nearest(key string, known map[string]reflect.Type) string {
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	sort.Strings(names)
	best, bestDistance := "", 1<<30
	for _, name := range names {
		if d := editDistance(strings.ToLower(key), name); d < bestDistance {
			best, bestDistance = name, d
		}
	}
	return best
}

// editDistance is the Levenshtein distance.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// unknownEnvironment warns of PARLEY_… variables that no option reads.
func unknownEnvironment(known map[string]reflect.Type) (warnings []string) {
	names := map[string]reflect.Type{}
	for key, t := range known {
		names["PARLEY_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))] = t
	}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if _, ok := names[name]; ok || !strings.HasPrefix(name, "PARLEY_") || strings.HasPrefix(name, "PARLEY_TEST_") {
			continue
		}
		lower := map[string]reflect.Type{}
		for n, t := range names {
			lower[strings.ToLower(n)] = t
		}
		warnings = append(warnings, fmt.Sprintf("environment variable %s is no option of Parley; did you mean %s?", name, strings.ToUpper(nearest(name, lower))))
	}
	return warnings
}
