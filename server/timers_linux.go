package main

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// timerSlack is how much later than asked for the kernel may wake one of this process's threads.
	timerSlack = 500 * time.Microsecond
	// defaultTimerSlack is what Linux gives a process that nobody gave anything else, such as TimerSlackNSec= of systemd.
	defaultTimerSlack = 50 * time.Microsecond
	// timersSet is set for the process that coarseTimers has started anew.
	timersSet = "PARLEY_TIMERS_SET"
)

// Until coarseTimers has run, main stays on the process's first thread: only that one is told when the parent ends.
func init() { runtime.LockOSThread() }

// coarseTimers makes this process's timers coarser, by starting the program anew within the process, which takes some 20 ms. While a
// goroutine runs, a thread of Go's runtime looks every 20 us whether one of the others stands in a system call for long (sysmon): with the
// default slack this was a fifth of the CPU time of a message sent alone. No timer of ours needs to be that exact. A thread gets the slack
// of the one that started it, and can change that of no other; Go starts that thread before any code of ours runs.
// What cannot be done is left: all works without it.
func coarseTimers() {
	defer runtime.UnlockOSThread()
	if os.Getenv(timersSet) != "" {
		_ = os.Unsetenv(timersSet)
		return
	}
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || time.Duration(slack) != defaultTimerSlack {
		return
	}
	program, err := os.Executable()
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(program, os.Args, append(os.Environ(), timersSet+"=1"))
}
