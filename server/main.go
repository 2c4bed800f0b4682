// Command parley is a federated, self-hosted, voice-first messaging server that speaks Matrix.
//
// The package main builds every room of the house once, in floor order, and is known by nobody: config.go composes the
// rooms' configurations, build.go the rooms, serve.go listens, dev.go makes a development world, check.go looks whether
// this server is set up well, bench.go measures any Matrix server, purge.go deletes and keeps from being deleted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

const usageText = `Parley, a voice-first Matrix homeserver.

usage: parley [-config FILE]           start the server
       parley check [-config FILE]     look whether this server is set up well
       parley dev [options]            start a world of federating servers for development
       parley bench -url URL …         measure any Matrix server
       parley rotate-key [-config FILE]  give the server a new signing key
       parley purge [options] ROOM     delete a room's history, or the whole room
       parley hold [options] ROOM|USER  keep what is there from being deleted
       parley vacuum [-config FILE]    give free space of the database back
       parley version                  print the version

Without -config the file parley.yaml in the current directory is read if there is one. Every option can also be
set by an environment variable: PARLEY_SERVER_NAME, PARLEY_DATABASE_URL, … config.example.yaml describes them all.
"parley COMMAND -h" tells more about a command.
`

func main() {
	coarseTimers()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "parley:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "check":
			return commandCheck(ctx, args[1:], stdout)
		case "dev":
			return commandDev(ctx, args[1:], stdout, stderr)
		case "bench":
			return commandBench(ctx, args[1:], stdout)
		case "rotate-key":
			return commandRotateKey(args[1:], stdout)
		case "purge":
			return commandPurge(ctx, args[1:], stdout)
		case "hold":
			return commandHold(ctx, args[1:], stdout)
		case "vacuum":
			return commandVacuum(ctx, args[1:], stdout)
		case "version":
			fmt.Fprintln(stdout, "Parley", version())
			return nil
		}
	}
	return commandServe(ctx, args, stdout, stderr)
}

// version is the module's version, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "0-" + s.Value[:12]
		}
	}
	return "0-devel"
}
