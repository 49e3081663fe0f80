// bench is a Go program that measures what its goroutines cost, on command: each line on standard
// input is a command, each line on standard output its result in JSON. So one process can be sampled
// in turns with and without a tracer attached.
//
//	births 200ms        births and deaths of goroutines, as many as fit into the time
//	pingpong 200ms      round trips over two unbuffered channels between two goroutines
//	pingpong on, off    the same beside other commands, until it is told to end; counts when it has
//	churn 10000 5s      goroutines a second that each sleep 2 ms, for that time; returns when all are gone
//	trace on, trace off Go's own execution tracer, writing to nowhere
//	park 1000           that many goroutines more that wait for ever; returns when all of them do
//	pause               the longest pause of a goroutine that ticks, since this was last asked for
//	profile 2           its own goroutine profile in that debug form; counts the bytes
//	grow 1073741824     a heap of that many bytes: maps, trees, lists and slices
//	wait 1000           that many goroutines more that wait for others, half of them for nobody
//	gc                  runs the collector
//	leaked              its own profile of leaked goroutines (Go 1.27); counts them
//	exec PATH           executes that program in its place, with the same arguments
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
	"runtime/pprof"
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
	// PauseNS is the longest pause of the goroutine that ticks, where there is one.
	PauseNS float64 `json:"pause_ns"`
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
	case len(words) == 2 && words[0] == "pingpong" && words[1] == "on":
		go func() { played <- pingpong(func() bool { return !stop.Load() }) }()
		return sample{}, nil
	case len(words) == 2 && words[0] == "pingpong" && words[1] == "off":
		stop.Store(true)
		n := <-played
		stop.Store(false)
		return sample{Count: n}, nil
	case len(words) == 2 && words[0] == "pingpong":
		return measured(words[1], func(d time.Duration) int {
			start := time.Now()
			return pingpong(func() bool { return time.Since(start) < d })
		})
	case len(words) == 2 && words[0] == "park":
		n, err := strconv.Atoi(words[1])
		if err != nil {
			return sample{}, err
		}
		return park(n), nil
	case len(words) == 1 && words[0] == "pause":
		ticking.Do(func() { go tick() })
		return sample{PauseNS: float64(longest.Swap(0))}, nil
	case len(words) == 2 && words[0] == "profile":
		debug, err := strconv.Atoi(words[1])
		if err != nil {
			return sample{}, err
		}
		return profile(debug)
	case len(words) == 2 && words[0] == "grow":
		bytes, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return sample{}, err
		}
		return grow(bytes)
	case len(words) == 2 && words[0] == "wait":
		n, err := strconv.Atoi(words[1])
		if err != nil {
			return sample{}, err
		}
		return wait(n)
	case len(words) == 1 && words[0] == "gc":
		return collect()
	case len(words) == 1 && words[0] == "leaked":
		return leaked()
	case len(words) == 2 && words[0] == "exec":
		return sample{}, syscall.Exec(words[1], os.Args, os.Environ())
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

var (
	stop   atomic.Bool
	played = make(chan int)
)

// pingpong sends a number there and back.
func pingpong(goOn func() bool) int {
	there, back := make(chan int), make(chan int)
	go func() {
		for v := range there {
			back <- v + 1
		}
	}()
	n := 0
	for goOn() {
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

// park makes goroutines that wait for ever, each on a channel of its own, under one to eight calls.
func park(n int) sample {
	start, cpu := time.Now(), cpuTime()
	var parked atomic.Int64
	for i := 0; i < n; i++ {
		go under(i%8, make(chan struct{}), &parked)
		if i%1024 == 1023 {
			runtime.Gosched()
		}
	}
	for parked.Load() < int64(n) {
		time.Sleep(time.Millisecond)
	}
	// So that no collection runs on while something is measured.
	runtime.GC()
	return sample{Count: n, CPUNS: float64(cpuTime() - cpu), WallNS: float64(time.Since(start))}
}

//go:noinline
func under(calls int, c chan struct{}, parked *atomic.Int64) {
	if calls > 0 {
		under(calls-1, c, parked)
		return
	}
	parked.Add(1)
	<-c
}

var (
	ticking sync.Once
	// longest pause so far, in nanoseconds.
	longest atomic.Int64
)

// tick wakes up every 100 us, and notes the longest time that it did not.
func tick() {
	last := time.Now()
	for {
		time.Sleep(100 * time.Microsecond)
		now := time.Now()
		if pause := int64(now.Sub(last)); pause > longest.Load() {
			longest.Store(pause)
		}
		last = now
	}
}

// profile writes the goroutine profile to nowhere.
func profile(debug int) (sample, error) {
	longest.Store(0)
	var bytes count
	start, cpu := time.Now(), cpuTime()
	err := pprof.Lookup("goroutine").WriteTo(&bytes, debug)
	wall, used := time.Since(start), cpuTime()-cpu
	// A pause that lasts until the end is noted only when it is over.
	time.Sleep(time.Millisecond)
	pause := longest.Load()
	return sample{Count: int(bytes), CPUNS: float64(used), WallNS: float64(wall), PauseNS: float64(pause)}, err
}

// count counts what is written.
type count int

func (c *count) Write(b []byte) (int, error) {
	*c += count(len(b))
	return len(b), nil
}
