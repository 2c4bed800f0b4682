package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const benchUsage = `usage: parley bench -url URL [options] [scenario …]

Drives any Matrix server over its HTTP API and measures it. It makes users and rooms of its own; use it on a test server
with rate limits off. Every message sent is looked for at its readers: one that is lost, doubled or out of order is an error.

scenarios: send parallel fanout bigroom initial idle media federation (default: all; federation needs -url2)

options:
`

// bench is one run of the load generator.
type bench struct {
	out io.Writer
	w1  *benchServer // the server measured
	w2  *benchServer // another one, for federation; nil if none

	messages int
	waiting  int
	members  int
	rooms    int
	clients  int
	run      string // makes names of this run differ from those of others
}

type scenario struct {
	name string
	run  func(context.Context) error
}

func commandBench(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), benchUsage); flags.PrintDefaults() }
	url := flags.String("url", "", "base `URL` of the client API")
	secret := flags.String("secret", "", "registration shared `secret`; empty: open registration with m.login.dummy")
	url2 := flags.String("url2", "", "base `URL` of a second, federating server")
	secret2 := flags.String("secret2", "", "registration shared `secret` of the second server")
	pid := flags.Int("pid", 0, "process `ID` of the server, when it runs on this machine: adds its CPU time, memory and disk writes")
	dir := flags.String("dir", "", "directory that the server writes to: adds its growth")
	b := &bench{out: stdout, run: strconv.FormatInt(time.Now().UnixNano()%1e10, 36)}
	flags.IntVar(&b.messages, "messages", 1000, "messages in the scenarios send and parallel; the others send fewer")
	flags.IntVar(&b.waiting, "waiting", 200, "waiting readers in the scenario fanout")
	flags.IntVar(&b.members, "members", 500, "members of the room in the scenario bigroom")
	flags.IntVar(&b.rooms, "rooms", 50, "rooms in the scenario initial")
	flags.IntVar(&b.clients, "clients", 32, "clients at the same time in the scenario parallel")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *url == "" {
		flags.Usage()
		return errors.New("bench needs -url")
	}
	b.w1 = newBenchServer(*url, *secret, *pid, *dir)
	if *url2 != "" {
		b.w2 = newBenchServer(*url2, *secret2, 0, "")
	}
	scenarios := []scenario{
		{"send", b.send}, {"parallel", b.parallel}, {"fanout", b.fanout}, {"bigroom", b.bigRoom},
		{"initial", b.initialSync}, {"idle", b.idle}, {"media", b.media}, {"federation", b.federation},
	}
	for _, name := range flags.Args() {
		if !slices.ContainsFunc(scenarios, func(s scenario) bool { return s.name == name }) {
			return fmt.Errorf("there is no scenario %q", name)
		}
	}
	for _, s := range scenarios {
		if flags.NArg() > 0 && !slices.Contains(flags.Args(), s.name) || s.name == "federation" && b.w2 == nil {
			continue
		}
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// usage is what a process has used so far.
type usage struct {
	at      time.Time
	cpu     time.Duration
	written int64 // bytes handed to the disk
	rss     int64 // bytes resident now
	dir     int64 // bytes in the server's directory
}

// usage reads the process's accounts in /proc; zeroes where there is none.
func (s *benchServer) usage() usage {
	u := usage{at: time.Now()}
	if s.pid != 0 {
		proc := filepath.Join("/proc", strconv.Itoa(s.pid))
		if stat, err := os.ReadFile(filepath.Join(proc, "stat")); err == nil {
			// The name in parentheses may hold blanks; the fields after it are counted from 3.
			_, rest, _ := strings.Cut(string(stat), ") ")
			if f := strings.Fields(rest); len(f) > 21 {
				user, _ := strconv.ParseInt(f[11], 10, 64)
				system, _ := strconv.ParseInt(f[12], 10, 64)
				pages, _ := strconv.ParseInt(f[21], 10, 64)
				u.cpu = time.Duration(user+system) * clockTick()
				u.rss = pages * int64(os.Getpagesize())
			}
		}
		if stat, err := os.ReadFile(filepath.Join(proc, "io")); err == nil {
			for line := range strings.Lines(string(stat)) {
				if n, ok := strings.CutPrefix(line, "write_bytes: "); ok {
					u.written, _ = strconv.ParseInt(strings.TrimSpace(n), 10, 64)
				}
			}
		}
	}
	if s.dir != "" {
		_ = filepath.WalkDir(s.dir, func(_ string, entry os.DirEntry, err error) error {
			if err == nil && entry.Type().IsRegular() {
				if stat, err := entry.Info(); err == nil {
					u.dir += stat.Size()
				}
			}
			return nil // what vanishes while we look is not counted
		})
	}
	return u
}

// clockTick is the unit of /proc/PID/stat: a hundredth of a second, unless the system says otherwise.
func clockTick() time.Duration {
	out, err := exec.Command("getconf", "CLK_TCK").Output()
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(out))); err == nil && n > 0 {
			return time.Second / time.Duration(n)
		}
	}
	return 10 * time.Millisecond
}

// measurement is one phase of a scenario.
type measurement struct {
	b      *bench
	name   string
	before usage
	took   []time.Duration
}

func (b *bench) measure(name string) *measurement {
	return &measurement{b: b, name: name, before: b.w1.usage()}
}

func (m *measurement) add(took time.Duration) { m.took = append(m.took, took) }

// report prints one line a measurement: n operations, their latencies, throughput and what each cost the server.
func (m *measurement) report(n int, what string) {
	after := m.b.w1.usage()
	wall := after.at.Sub(m.before.at)
	fmt.Fprintf(m.b.out, "%-10s %6d %-18s %9.1f/s", m.name, n, what, float64(n)/wall.Seconds())
	if len(m.took) > 0 {
		slices.Sort(m.took)
		fmt.Fprintf(m.b.out, "  p50 %s  p95 %s  p99 %s  max %s", ms(percentile(m.took, 50)), ms(percentile(m.took, 95)),
			ms(percentile(m.took, 99)), ms(m.took[len(m.took)-1]))
	}
	if m.b.w1.pid != 0 {
		fmt.Fprintf(m.b.out, "  cpu/op %s  written/op %s  rss %s", ms((after.cpu-m.before.cpu)/time.Duration(n)),
			size((after.written-m.before.written)/int64(n)), size(after.rss))
	}
	if m.b.w1.dir != "" {
		fmt.Fprintf(m.b.out, "  grown/op %s", size((after.dir-m.before.dir)/int64(n)))
	}
	fmt.Fprintln(m.b.out)
}

// percentile of a sorted list, by nearest rank.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.3fms", float64(d)/float64(time.Millisecond)) }

func size(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1fMiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1fKiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%dB", n)
}
