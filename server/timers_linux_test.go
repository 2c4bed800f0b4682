package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// printTimers makes the test binary say what slack the timers of a server's threads have.
const printTimers = "PARLEY_TEST_PRINT_TIMERS"

func init() {
	if os.Getenv(printTimers) == "" {
		return
	}
	coarseTimers()
	slack := make(chan string)
	go func() { // on a thread that Go has started
		ns, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		slack <- fmt.Sprintf("%d ns, %v, %q, %q", ns, err, os.Getenv(timersSet), os.Args[1:])
	}()
	fmt.Println(<-slack)
	os.Exit(0)
}

func TestTimersAreCoarse(t *testing.T) {
	command := exec.Command(os.Args[0], "-config", "a b.yaml")
	command.Env = append(os.Environ(), printTimers+"=1")
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if slack == int(defaultTimerSlack) { // what somebody has set is left
		slack = int(timerSlack)
	}
	if got, want := strings.TrimSpace(string(out)), fmt.Sprintf(`%d ns, <nil>, "", ["-config" "a b.yaml"]`, slack); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
