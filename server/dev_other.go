//go:build !linux

package main

import "syscall"

// childAttributes: a process group of its own, so that Ctrl-C in the terminal reaches only the parent.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
