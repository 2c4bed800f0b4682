package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"parley.im/parley/api"
	"parley.im/parley/federation"
	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const checkUsage = `usage: parley check [-config FILE] [-remote]

Says whether the configuration is valid and what it needs is there. It changes nothing.

options:
`

// checker prints what it finds and counts what is wrong.
type checker struct {
	out    io.Writer
	failed int
}

func (c *checker) report(what, found string, err error) {
	if err != nil {
		c.failed++
		fmt.Fprintf(c.out, "  WRONG  %s: %v\n", what, err)
		return
	}
	fmt.Fprintf(c.out, "  ok     %s: %s\n", what, found)
}

func commandCheck(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), checkUsage); flags.PrintDefaults() }
	path := configFlag(flags)
	remote := flags.Bool("remote", false, "also look at the database, the sign-in providers, and at this server from outside: DNS, certificate, signing keys")
	if err := flags.Parse(args); err != nil {
		return err
	}
	file := configPath(*path)
	cfg, warnings, err := loadConfig(file)
	if err != nil {
		return err
	}
	c := &checker{out: out}
	if file == "" {
		file = "no file: all options have their defaults, or come from the environment"
	}
	c.report("configuration", file, nil)
	for _, w := range warnings {
		fmt.Fprintln(out, "  note  ", w)
	}
	c.local(cfg)
	if *remote {
		c.database(ctx, cfg.Database)
		c.providers(ctx, cfg)
		c.remote(ctx, cfg)
	}
	if c.failed > 0 {
		return fmt.Errorf("%d of the checks failed", c.failed)
	}
	return nil
}

// local looks at files.
func (c *checker) local(cfg *Config) {
	switch _, err := os.Stat(cfg.DataDir); {
	case errors.Is(err, os.ErrNotExist):
		c.report("data_dir", cfg.DataDir+" will be made at the first start", nil)
	default:
		c.report("data_dir", cfg.DataDir, err)
	}
	if cfg.TLS.Listen == "" {
		return
	}
	pair, err := tls.LoadX509KeyPair(cfg.TLS.Certificate, cfg.TLS.Key)
	if err == nil {
		if left := time.Until(pair.Leaf.NotAfter); left < 0 {
			err = fmt.Errorf("it expired on %s", pair.Leaf.NotAfter.Format(time.DateOnly))
		}
	}
	if err != nil {
		c.report("tls.certificate", "", err)
		return
	}
	c.report("tls.certificate", fmt.Sprintf("for %v, valid until %s", append(pair.Leaf.DNSNames, addresses(pair)...), pair.Leaf.NotAfter.Format(time.DateOnly)), nil)
}

func addresses(pair tls.Certificate) (all []string) {
	for _, ip := range pair.Leaf.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

func (c *checker) database(ctx context.Context, cfg storage.Config) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	found, err := storage.Probe(ctx, cfg)
	c.report("database", found, err)
}

// providers asks those where people sign in, and says what has to be registered there.
func (c *checker) providers(ctx context.Context, cfg *Config) {
	if len(cfg.Users.SSO.Providers) == 0 {
		return
	}
	guard, err := federation.NewGuard(cfg.Outgoing.AllowPrivateAddresses, cfg.Outgoing.AllowAddresses)
	if err != nil {
		c.report("outgoing.allow_addresses", "", err)
		return
	}
	client := ssoClient(cfg.Users.SSO, federation.NewGuardedClient(guard, nil, 15*time.Second))
	for _, p := range cfg.Users.SSO.Providers {
		c.report("sign-in with "+p.Name, p.Issuer+" answers; the redirect URI to register there is "+api.SSOCallback(cfg.ClientAPI), p.Check(ctx, client))
	}
}

// remote looks at this server as others see it.
func (c *checker) remote(ctx context.Context, cfg *Config) {
	if !cfg.Federation.Enabled {
		c.report("federation", "is off", nil)
		return
	}
	published := federation.Probe(ctx, cfg.Federation, matrix.ServerName(cfg.ServerName), c.report)
	if published == nil {
		return
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "signing.key")); err != nil {
		c.report("own signing key", "", err)
		return
	}
	key, err := loadSigningKey(cfg.DataDir, slog.New(slog.DiscardHandler))
	if err == nil && !slices.Contains(published, key.ID) {
		err = fmt.Errorf("what answers under %s publishes other keys than ours (%s): the name leads to another server", cfg.ServerName, key.ID)
	}
	if err != nil {
		c.report("own signing key", "", err)
		return
	}
	c.report("own signing key", string(key.ID)+" is the one that others see", nil)
}
