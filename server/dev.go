package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"
)

const devUsage = `usage: parley dev [options]

Starts a world for development: federating servers on 127.0.0.1, each a process of its own, with TLS made for the
occasion and one user on each: alice on the first, bob on the second, and so on. Ctrl-C ends it.

options:
`

// devPassword is the password of every user of the development world.
const devPassword = "correct horse battery staple"

var devNames = []string{"alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy"}

// devServer is one server of the development world, as "dev -json" prints it.
type devServer struct {
	ServerName    string    `json:"server_name"`
	ClientURL     string    `json:"client_url"`
	FederationURL string    `json:"federation_url"`
	PID           int       `json:"pid"`
	DataDir       string    `json:"data_dir"`
	ConfigFile    string    `json:"config_file"`
	SharedSecret  string    `json:"registration_shared_secret"`
	Users         []devUser `json:"users"`

	command *exec.Cmd
	exited  chan struct{}
}

type devUser struct {
	UserID      string `json:"user_id"`
	Password    string `json:"password"`
	AccessToken string `json:"access_token"`
	DeviceID    string `json:"device_id"`
}

// devWorld is what a development world is made of.
type devWorld struct {
	dir      string
	database string // PostgreSQL URL under which each server gets a database; empty for SQLite
	servers  []*devServer
	stderr   io.Writer
	ca       *x509.Certificate
	caKey    *ecdsa.PrivateKey
}

func commandDev(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("dev", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, devUsage); flags.PrintDefaults() }
	dir := flags.String("dir", "", "keep the world in this `directory`; empty: a temporary one that is deleted in the end")
	count := flags.Int("servers", 2, "how many servers")
	database := flags.String("database", "", "PostgreSQL `URL` under which each server gets a database of its own; empty: SQLite")
	asJSON := flags.Bool("json", false, "print one line of JSON when all is ready, and nothing else, on standard output")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("dev takes no argument %q", flags.Arg(0))
	}
	if *count < 1 || *count > 50 {
		return errors.New("-servers must be 1 to 50")
	}
	if *dir == "" {
		temporary, err := os.MkdirTemp("", "parley-dev")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temporary)
		*dir = temporary
	}
	absolute, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	w := &devWorld{dir: absolute, database: *database, stderr: stderr}
	defer w.stop()
	if err := w.start(ctx, *count); err != nil {
		return err
	}
	if *asJSON {
		if err := json.NewEncoder(stdout).Encode(map[string]any{"servers": w.servers}); err != nil {
			return err
		}
	} else {
		w.explain(stdout)
	}
	<-ctx.Done()
	return nil
}

// start makes what is missing in the world's directory, starts the servers, waits for them and signs the users in.
func (w *devWorld) start(ctx context.Context, count int) error {
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return err
	}
	if err := w.authority(); err != nil {
		return err
	}
	for i := range count {
		fmt.Fprintf(w.stderr, "starting server %d of %d …\n", i+1, count)
		s, err := w.server(ctx, i)
		if err != nil {
			return err
		}
		if err := w.launch(s); err != nil {
			return err
		}
		w.servers = append(w.servers, s)
	}
	for i, s := range w.servers {
		if err := s.ready(ctx); err != nil {
			return err
		}
		if err := s.signIn(ctx, devName(i)); err != nil {
			return err
		}
	}
	return nil
}

func devName(i int) string {
	if i < len(devNames) {
		return devNames[i]
	}
	return fmt.Sprintf("%s%d", devNames[i%len(devNames)], i/len(devNames)+1)
}

// server reads server number i from the world's directory, or makes its configuration and certificate there.
func (w *devWorld) server(ctx context.Context, i int) (*devServer, error) {
	dir := filepath.Join(w.dir, fmt.Sprintf("server%d", i+1))
	s := &devServer{DataDir: dir, ConfigFile: filepath.Join(dir, "parley.yaml")}
	if _, err := os.Stat(s.ConfigFile); errors.Is(err, os.ErrNotExist) {
		if err := w.makeServer(ctx, i, s); err != nil {
			return nil, err
		}
	}
	cfg, _, err := loadConfig(s.ConfigFile)
	if err != nil {
		return nil, err
	}
	s.ServerName = cfg.ServerName
	s.ClientURL = "http://" + cfg.Listen
	s.FederationURL = "https://" + cfg.TLS.Listen
	s.SharedSecret = cfg.Users.RegistrationSharedSecret
	return s, nil
}

func (w *devWorld) makeServer(ctx context.Context, i int, s *devServer) error {
	if err := os.MkdirAll(s.DataDir, 0o700); err != nil {
		return err
	}
	client, err := freeAddress()
	if err != nil {
		return err
	}
	federation, err := freeAddress()
	if err != nil {
		return err
	}
	certificate, key := filepath.Join(s.DataDir, "tls.crt"), filepath.Join(s.DataDir, "tls.key")
	if err := w.issue(certificate, key); err != nil {
		return err
	}
	database := "sqlite:" + filepath.Join(s.DataDir, "parley.db")
	if w.database != "" {
		if database, err = makeDatabase(ctx, w.database, fmt.Sprintf("parley_dev%d", i+1)); err != nil {
			return err
		}
	}
	return writeYAML(s.ConfigFile, devConfig(federation, client, s.DataDir, database, certificate, key, w.caFile()))
}

// devConfig is the configuration of a server of the development world: rate limits off, cheap passwords, open
// registration, and federation on loopback addresses with an authority of its own.
func devConfig(federation, client, dir, database, certificate, key, ca string) map[string]any {
	return map[string]any{
		"server_name": federation, // an address with a port needs no discovery
		"data_dir":    dir,
		"listen":      client,
		"tls":         map[string]any{"listen": federation, "certificate": certificate, "key": key},
		"database":    map[string]any{"url": database},
		"client_api":  map[string]any{"public_url": "http://" + client, "rate_limits": map[string]any{"enabled": false}},
		"users": map[string]any{"registration": "open", "registration_shared_secret": rand.Text(),
			"password_memory_kib": 64, "password_time": 1},
		"push":       map[string]any{"insecure_gateways": true},
		"federation": map[string]any{"ca_file": ca, "allow_private_addresses": true},
		"outgoing":   map[string]any{"allow_private_addresses": true},
	}
}

func writeYAML(path string, value any) error {
	text, err := yaml.Marshal(value)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// freeAddress finds a port of 127.0.0.1 that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// makeDatabase makes an empty PostgreSQL database unless there is one, and returns its URL.
func makeDatabase(ctx context.Context, base, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, base)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil {
		return "", err
	}
	if !exists {
		if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"); err != nil {
			return "", fmt.Errorf("create database %s: %w", name, err)
		}
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", errors.New("-database must be a URL, such as postgres:///postgres?host=/var/run/postgresql")
	}
	u.Path = "/" + name
	return u.String(), nil
}

// launch starts the server's process. It ends with this one, also when this one is killed.
func (w *devWorld) launch(s *devServer) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.DataDir, "parley.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.command = exec.Command(program, "-config", s.ConfigFile)
	s.command.Stdout, s.command.Stderr = log, log
	s.command.SysProcAttr = childAttributes()
	if err := s.command.Start(); err != nil {
		return err
	}
	s.PID = s.command.Process.Pid
	s.exited = make(chan struct{})
	go func() {
		_ = s.command.Wait() // how it ended is in its log
		close(s.exited)
	}()
	return nil
}

// stop ends the servers that are still ours and waits for them.
func (w *devWorld) stop() {
	for _, s := range w.servers {
		_ = s.command.Process.Signal(syscall.SIGTERM) // it may have ended already
	}
	for _, s := range w.servers {
		select {
		case <-s.exited:
		case <-time.After(20 * time.Second):
			_ = s.command.Process.Kill()
		}
	}
}

// ready waits until the server answers.
func (s *devServer) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	client := newBenchServer(s.ClientURL, "", 0, "")
	for {
		err := client.call(ctx, "", "GET", "/_matrix/client/versions", nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("%s ended while it started; see %s", s.ServerName, filepath.Join(s.DataDir, "parley.log"))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w; see %s", s.ServerName, err, filepath.Join(s.DataDir, "parley.log"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// signIn makes the user unless it is there, and signs it in.
func (s *devServer) signIn(ctx context.Context, name string) error {
	client := newBenchServer(s.ClientURL, s.SharedSecret, 0, "")
	login := map[string]any{"type": "m.login.password", "password": devPassword, "device_id": "DEV",
		"identifier": map[string]any{"type": "m.id.user", "user": name}}
	u := devUser{Password: devPassword}
	answer := struct {
		UserID      *string `json:"user_id"`
		AccessToken *string `json:"access_token"`
		DeviceID    *string `json:"device_id"`
	}{&u.UserID, &u.AccessToken, &u.DeviceID}
	err := client.call(ctx, "", "POST", "/_matrix/client/v3/login", login, &answer)
	if err != nil {
		if _, err := client.register(ctx, name); err != nil {
			return err
		}
		if err := client.call(ctx, "", "POST", "/_matrix/client/v3/login", login, &answer); err != nil {
			return err
		}
	}
	s.Users = []devUser{u}
	return nil
}

func (w *devWorld) caFile() string { return filepath.Join(w.dir, "ca.crt") }

// authority reads the world's certificate authority, or makes it.
func (w *devWorld) authority() error {
	keyFile := filepath.Join(w.dir, "ca.key")
	pair, err := tls.LoadX509KeyPair(w.caFile(), keyFile)
	if err == nil {
		w.ca, w.caKey = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Parley development"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	w.caKey = key
	if w.ca, err = writeCertificate(template, template, key, key, w.caFile(), keyFile); err != nil {
		return err
	}
	return nil
}

// issue makes a certificate for 127.0.0.1.
func (w *devWorld) issue(certificate, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "127.0.0.1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	_, err = writeCertificate(template, w.ca, key, w.caKey, certificate, keyFile)
	return err
}

func writeCertificate(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey, certificate, keyFile string) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// explain prints what a developer does next, ready to be pasted.
func (w *devWorld) explain(out io.Writer) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "\nThe world is in %s. Ctrl-C ends it.\n", w.dir)
	for _, s := range w.servers {
		u := s.Users[0]
		fmt.Fprintf(&b, "\n%s\n  client API    %s\n  federation    %s\n  log           %s\n  user          %s, password %q\n  access token  %s\n",
			s.ServerName, s.ClientURL, s.FederationURL, filepath.Join(s.DataDir, "parley.log"), u.UserID, u.Password, u.AccessToken)
	}
	if len(w.servers) > 1 {
		one, two := w.servers[0], w.servers[1]
		replace := strings.NewReplacer("$A_URL", one.ClientURL, "$A_TOKEN", one.Users[0].AccessToken, "$B_URL", two.ClientURL,
			"$B_TOKEN", two.Users[0].AccessToken, "$A_NAME", one.ServerName, "$B_USER", two.Users[0].UserID)
		_, _ = replace.WriteString(&b, devWalk)
	}
	_, _ = b.WriteTo(out)
}

const devWalk = `
A voice message from alice to bob, on the other server. Paste the lines one after the other; voice.ogg is any Ogg Opus file
(ffmpeg -i in.wav -ac 1 -c:a libopus -b:a 24k voice.ogg). The commands need curl and jq.

  # alice makes a room and invites bob
  ROOM=$(curl -s -H 'Authorization: Bearer $A_TOKEN' $A_URL/_matrix/client/v3/createRoom -d '{"preset":"private_chat","name":"Voices","invite":["$B_USER"]}' | jq -r .room_id)

  # bob joins it over federation
  curl -s -H 'Authorization: Bearer $B_TOKEN' -X POST "$B_URL/_matrix/client/v3/join/$ROOM?via=$A_NAME" -d '{}'

  # alice uploads a file and sends it as a voice message
  MXC=$(curl -s -H 'Authorization: Bearer $A_TOKEN' -H 'Content-Type: audio/ogg' "$A_URL/_matrix/media/v3/upload?filename=voice.ogg" --data-binary @voice.ogg | jq -r .content_uri)
  curl -s -H 'Authorization: Bearer $A_TOKEN' -X PUT "$A_URL/_matrix/client/v3/rooms/$ROOM/send/m.room.message/voice1" -d '{"msgtype":"m.audio","body":"Voice message.ogg","url":"'$MXC'","info":{"mimetype":"audio/ogg"},"org.matrix.msc1767.audio":{},"org.matrix.msc3245.voice":{},"m.mentions":{}}'

  # bob finds it in his timeline and fetches it through his own server
  MXC=$(curl -s -H 'Authorization: Bearer $B_TOKEN' "$B_URL/_matrix/client/v3/rooms/$ROOM/messages?dir=b&limit=1" | jq -r '.chunk[0].content.url')
  curl -s -H 'Authorization: Bearer $B_TOKEN' "$B_URL/_matrix/client/v1/media/download/${MXC#mxc://}" -o heard.ogg && cmp voice.ogg heard.ogg && echo the same bytes
`
