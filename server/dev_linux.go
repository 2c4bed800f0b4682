package main

import "syscall"

// childAttributes: a process group of its own, so that Ctrl-C in the terminal reaches only the parent, which then stops
// the servers in order, and the end of the parent ends the child too.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
