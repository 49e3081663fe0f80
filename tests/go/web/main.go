// web is an HTTP server, and a client of one, on command: each line on standard input is a command, each line on standard
// output its result in JSON.
//
//	serve 200us         an HTTP server whose requests each take so much work; counts the port
//	load PORT 4 500ms   requests to such a server, over so many connections; counts the answers
//	used                CPU time so far
//
// It ends when standard input does.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sample is what a command came to.
type sample struct {
	Count  int     `json:"count"`
	CPUNS  float64 `json:"cpu_ns"`
	WallNS float64 `json:"wall_ns"`
}

func main() {
	procs := flag.Int("procs", 1, "GOMAXPROCS")
	flag.Parse()
	runtime.GOMAXPROCS(*procs)
	answer := json.NewEncoder(os.Stdout)
	answer.Encode(map[string]any{"pid": os.Getpid(), "go_version": runtime.Version(), "procs": *procs})
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		s, err := obey(strings.Fields(commands.Text()))
		if err != nil {
			fmt.Fprintf(os.Stderr, "web: %s: %v\n", commands.Text(), err)
			os.Exit(2)
		}
		answer.Encode(s)
	}
}

func obey(words []string) (sample, error) {
	switch {
	case len(words) == 2 && words[0] == "serve":
		work, err := time.ParseDuration(words[1])
		if err != nil {
			return sample{}, err
		}
		return serve(work)
	case len(words) == 4 && words[0] == "load":
		port, err := strconv.Atoi(words[1])
		if err != nil {
			return sample{}, err
		}
		connections, err := strconv.Atoi(words[2])
		if err != nil {
			return sample{}, err
		}
		d, err := time.ParseDuration(words[3])
		if err != nil {
			return sample{}, err
		}
		return load(port, connections, d)
	case len(words) == 1 && words[0] == "used":
		return sample{CPUNS: float64(cpuTime())}, nil
	}
	return sample{}, errors.New("no such command")
}

// cpuTime is the processor time of all threads, in user space and in the kernel.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
