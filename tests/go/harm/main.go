// harm is a Go program that does what has brought programs under a tracer to their end: it executes
// others in its place, at once or while its goroutines are busy, and starts children.
//
//	work 300ms               goroutines that come and go, for that time or until SIGTERM; prints a number
//	exec 10ms PROGRAM ...    works for that time, then executes the program in its place; 0s: at once
//	again 5 10ms             executes itself so often, and works for that time each time
//	start 5 10ms PROGRAM ... works, starts the program so often at the same time, and waits for each
//	memfd PROGRAM ...        executes a copy of the program in memory
//	seccomp PROGRAM ...      executes the program under a filter of system calls
//	ptrace 10ms PROGRAM ...  starts the program, holds it for that time as a debugger does, and lets it run
//
// What is worked ends with a line "ok" and a number, always the same. Further arguments mean nothing.
// It compiles with Go 1.19 and later; with tag "big" it is a file of 60 MB.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := obey(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "harm: %s: %v\n", strings.Join(os.Args[1:], " "), err)
		os.Exit(2)
	}
}

func obey(words []string) error {
	if len(words) < 2 {
		return fmt.Errorf("%d bytes of padding, and nothing to do", size)
	}
	switch words[0] {
	case "memfd":
		return memfd(words[1:])
	case "seccomp":
		return seccomp(words[1:])
	}
	times := 1
	if words[0] == "again" || words[0] == "start" {
		n, err := strconv.Atoi(words[1])
		if err != nil || len(words) < 3 {
			return fmt.Errorf("how often, and how long? %v", err)
		}
		times, words = n, append(words[:1:1], words[2:]...)
	}
	d, err := time.ParseDuration(words[1])
	if err != nil {
		return err
	}
	rest := words[2:]
	switch {
	case words[0] == "work":
		work(d)
		return nil
	case words[0] == "again":
		work(d)
		if times == 0 {
			return nil
		}
		return syscall.Exec(os.Args[0], append([]string{os.Args[0], "again", strconv.Itoa(times - 1), words[1]}, rest...), os.Environ())
	case words[0] == "exec" && len(rest) > 0:
		if d > 0 {
			// Busy when it is replaced.
			go work(time.Hour)
			time.Sleep(d)
		}
		return syscall.Exec(rest[0], rest, os.Environ())
	case words[0] == "start" && len(rest) > 0:
		return start(times, d, rest)
	case words[0] == "ptrace" && len(rest) > 0:
		return hold(d, rest)
	}
	return fmt.Errorf("no such command")
}

// start works while it starts children, one after the other.
func start(times int, d time.Duration, words []string) error {
	failed := make(chan error, 1)
	go func() {
		for i := 0; i < times; i++ {
			out, err := exec.Command(words[0], words[1:]...).Output()
			if err != nil {
				failed <- fmt.Errorf("child %d: %v, after %q", i, err, out)
				return
			}
		}
		failed <- nil
	}()
	work(d)
	return <-failed
}
