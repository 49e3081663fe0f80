// bench is a Go program that measures what its goroutines cost, on command: each line on standard
// input is a command, each line on standard output its result in JSON. So one process can be sampled
// in turns with and without a tracer attached.
//
//	births 200ms        births and deaths of goroutines, as many as fit into the time
//	pingpong 200ms      round trips over two unbuffered channels between two goroutines
//	churn 10000 5s      goroutines a second that each sleep 2 ms, for that time; returns when all are gone
//	trace on, trace off Go's own execution tracer, writing to nowhere
//
// It ends when standard input does. It compiles with Go 1.19 and later.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/trace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// sample is what a command came to. Nanoseconds of processor time leave out what other programs did
// to the machine meanwhile; with one P they are what the wall clock shows on an idle machine.
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
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", commands.Text(), err)
			os.Exit(2)
		}
		answer.Encode(s)
	}
}

func obey(words []string) (sample, error) {
	switch {
	case len(words) == 2 && words[0] == "trace":
		if words[1] == "on" {
			return sample{}, trace.Start(io.Discard)
		}
		trace.Stop()
		return sample{}, nil
	case len(words) == 2 && words[0] == "births":
		return measured(words[1], births)
	case len(words) == 2 && words[0] == "pingpong":
		return measured(words[1], pingpong)
	case len(words) == 3 && words[0] == "churn":
		rate, err := strconv.Atoi(words[1])
		if err != nil {
			return sample{}, err
		}
		return measured(words[2], func(d time.Duration) int { return churn(rate, d) })
	}
	return sample{}, errors.New("no such command")
}

func measured(text string, run func(time.Duration) int) (sample, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return sample{}, err
	}
	runtime.GC()
	start, cpu := time.Now(), cpuTime()
	n := run(d)
	return sample{Count: n, CPUNS: float64(cpuTime() - cpu), WallNS: float64(time.Since(start))}, nil
}

// cpuTime is the processor time of all threads, in user space and in the kernel.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// batch is how many goroutines are born before the creator yields to all of them at once.
const batch = 64

// births makes goroutines that end at once, and waits for them by yielding, so that besides their
// births and deaths nothing but one run each is in the figure.
func births(d time.Duration) int {
	var ended atomic.Int64
	n := 0
	for start := time.Now(); time.Since(start) < d; {
		for i := 0; i < batch; i++ {
			go mayfly(&ended)
		}
		n += batch
		for ended.Load() < int64(n) {
			runtime.Gosched()
		}
	}
	return n
}

func mayfly(ended *atomic.Int64) { ended.Add(1) }

// pingpong sends a number there and back.
func pingpong(d time.Duration) int {
	there, back := make(chan int), make(chan int)
	go func() {
		for v := range there {
			back <- v + 1
		}
	}()
	n := 0
	for start := time.Now(); time.Since(start) < d; {
		for i := 0; i < batch; i++ {
			there <- n
			n = <-back
		}
	}
	close(there)
	return n
}

// churn makes goroutines at a steady rate.
func churn(rate int, d time.Duration) int {
	var wg sync.WaitGroup
	n := 0
	for start := time.Now(); ; {
		passed := time.Since(start)
		if passed >= d {
			break
		}
		for due := int(passed.Seconds() * float64(rate)); n < due; n++ {
			wg.Add(1)
			go func() {
				defer wg.Done()
				time.Sleep(2 * time.Millisecond)
			}()
		}
		time.Sleep(time.Millisecond)
	}
	wg.Wait()
	return n
}
