// calls serves requests in functions of its own, without any server that gotrace knows, and tells of each what it was and
// where its time went by its own clocks. It obeys lines:
//
//	run N KIND…   makes N calls of each kind, one after the other; then a line of JSON for each, then {"done":…}
//	bare N        makes N calls that do nothing, and says how long they took: {"done":0,"bare_ns":…}
//
// It ends with its standard input.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	// How long a call waits, where it does.
	wait = 5 * time.Millisecond
	// What a goroutine takes that is left running.
	slow = 60 * time.Millisecond

	clockThreadCPU = 3
)

// What the program knows of one of its calls.
type own struct {
	Kind     string           `json:"kind"`
	Protocol string           `json:"protocol"`
	Function string           `json:"function"`
	Ended    string           `json:"ended"`
	Goid     uint64           `json:"goid"`
	Start    int64            `json:"start_unix_nano"`
	Total    int64            `json:"total_ns"`
	Phases   map[string]int64 `json:"phases"`
	// Goroutines that it started, and those of them that were there still.
	Children int `json:"children"`
	Left     int `json:"left_running"`
	// What those did that were gone.
	ChildSleep int64 `json:"child_sleep_ns"`
	ChildCPU   int64 `json:"child_cpu_ns"`

	begin time.Time
	work  func(*own)
}

// A kind of call.
type kind struct {
	name, function, ended string
	// On a goroutine of its own, with a small stack.
	fresh bool
	// Calls the function that is named.
	call func(*own)
	// What it does there.
	work func(*own)
}

var kinds = map[string]*kind{}

func init() {
	q := &queue{}
	for _, k := range []*kind{
		{name: "sleep", work: sleeps},
		{name: "cpu", work: computes},
		{name: "recursion", call: func(o *own) { recursive(o, 40) }, function: "main.recursive", work: sleeps},
		{name: "grows", call: wide, function: "main.wide", fresh: true, work: grows},
		{name: "recovered", work: recovers},
		{name: "panic", ended: "panic", work: func(o *own) { sleeps(o); o.stop(); panic("on purpose") }},
		{name: "deep_panic", ended: "panic", work: func(o *own) { sleeps(o); panics(o, 8) }},
		{name: "goexit", ended: "goroutine_exit", fresh: true, work: func(o *own) { sleeps(o); o.stop(); runtime.Goexit() }},
		{name: "method", call: q.work, function: "main.(*queue).work", work: sleeps},
		{name: "generic", call: func(o *own) { each([]string{"a"}, o) }, function: "main.each[...]", work: sleeps},
		{name: "nested", work: func(o *own) { sleeps(o); q.work(&own{work: func(*own) {}}) }},
		{name: "children", work: starts},
		{name: "behind", work: leaves},
	} {
		if k.call == nil {
			k.call, k.function = handle, "main.handle"
		}
		if k.ended == "" {
			k.ended = "normal"
		}
		kinds[k.name] = k
	}
}

func (o *own) start() {
	o.begin = time.Now()
	o.Start, o.Goid = o.begin.UnixNano(), goid()
}

func (o *own) stop() { o.Total = int64(time.Since(o.begin)) }

// Adds what has passed.
func (o *own) add(phase string, begin time.Time) { o.Phases[phase] += int64(time.Since(begin)) }

//go:noinline
func handle(o *own) {
	o.start()
	o.work(o)
	o.stop()
}

// Does nothing, and has a frame.
//
//go:noinline
func empty(n int) int {
	var room [4]int
	room[n&3] = n
	runtime.KeepAlive(&room)
	return room[0]
}

//go:noinline
func recursive(o *own, depth int) {
	if o.begin.IsZero() {
		o.start()
	}
	if depth > 0 {
		recursive(o, depth-1)
	} else {
		o.work(o)
	}
	if depth == 40 {
		o.stop()
		return
	}
}

// Needs a larger stack than a new goroutine has, so that it begins twice.
//
//go:noinline
func wide(o *own) {
	var room [1 << 14]byte
	o.start()
	o.work(o)
	room[o.Goid%uint64(len(room))] = 1
	runtime.KeepAlive(&room)
	o.stop()
}

type queue struct{ done int }

//go:noinline
func (q *queue) work(o *own) {
	o.start()
	o.work(o)
	q.done++
	o.stop()
}

//go:noinline
func each[T any](all []T, o *own) int {
	o.start()
	for range all {
		o.work(o)
	}
	o.stop()
	return len(all)
}

//go:noinline
func sleeps(o *own) {
	begin := time.Now()
	time.Sleep(wait)
	if o.Phases != nil {
		o.add("wait", begin)
	}
}

func threadClock() int64 {
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPU, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

// Uses so much of its thread's time.
func burn(d time.Duration) int64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	from := threadClock()
	for threadClock() < from+int64(d) {
		for i, sum := 0, 0; i < 5000; i++ {
			sum ^= i * i
		}
	}
	return threadClock() - from
}

//go:noinline
func computes(o *own) { o.Phases["cpu"] += burn(wait) }

// Makes its stack grow, and shrink as the collector sees that it is not used.
//
//go:noinline
func grows(o *own) {
	deep(200)
	runtime.GC()
	runtime.GC()
	sleeps(&own{})
	deep(1000)
}

//go:noinline
func deep(n int) int {
	var room [64]int
	room[n%64] = n
	if n == 0 {
		return room[0]
	}
	return deep(n-1) + room[n%64]
}

// Recovers from a panic within the call.
func recovers(o *own) {
	guarded(func(o *own) { sleeps(o); panic("on purpose") }, o)
	sleeps(o)
}

// Panics far below, where deferred functions run first that recover from panics of their own.
func panics(o *own, depth int) {
	if depth > 0 {
		defer guarded(func(*own) { panic("another") }, o)
		panics(o, depth-1)
		return
	}
	o.stop()
	panic("on purpose")
}

func guarded(f func(*own), o *own) {
	defer func() { recover() }()
	f(o)
}

// Starts goroutines, of which one starts another one, and stays until they are gone.
func starts(o *own) {
	before := runtime.NumGoroutine()
	o.Children = 4
	sums := make(chan [2]int64, o.Children)
	for i := 1; i <= 3; i++ {
		i := i
		go func() {
			if i == 1 {
				go child(4, sums)
			}
			child(i, sums)
		}()
	}
	for i := 0; i < o.Children; i++ {
		sum := <-sums
		o.ChildSleep += sum[0]
		o.ChildCPU += sum[1]
	}
	for runtime.NumGoroutine() > before {
		time.Sleep(100 * time.Microsecond)
	}
}

func child(n int, sums chan [2]int64) {
	begin := time.Now()
	time.Sleep(time.Duration(n) * time.Millisecond)
	slept := int64(time.Since(begin))
	sums <- [2]int64{slept, burn(time.Millisecond)}
}

// Goes without those whom it started.
func leaves(o *own) {
	o.Children, o.Left = 2, 2
	for i := 0; i < 2; i++ {
		go time.Sleep(slow)
	}
	sleeps(o)
}

// The number of the goroutine that asks.
func goid() uint64 {
	var buffer [64]byte
	text := string(buffer[:runtime.Stack(buffer[:], false)])
	n, _ := strconv.ParseUint(strings.Fields(text)[1], 10, 64)
	return n
}

// What works for the others, for good.
var jobs, done = make(chan func()), make(chan struct{})

func worker() {
	for job := range jobs {
		job()
		done <- struct{}{}
	}
}

// Makes a call, and waits for its end.
func run(k *kind) *own {
	o := &own{Kind: k.name, Protocol: "function", Function: k.function, Ended: k.ended, Phases: map[string]int64{}, work: k.work}
	job := func() {
		guarded(k.call, o)
		// A call that has ended is not to take this long.
		time.Sleep(wait)
	}
	if k.fresh {
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			job()
		}()
		<-gone
		return o
	}
	jobs <- job
	<-done
	return o
}

func say(line interface{}) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(text, '\n'))
}

func main() {
	go worker()
	say(map[string]interface{}{"ready": true, "go_version": runtime.Version()})
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		n, _ := strconv.Atoi(words[1])
		var finished []*own
		line := map[string]interface{}{}
		if words[0] == "bare" {
			begin := time.Now()
			for i := 0; i < n; i++ {
				empty(i)
			}
			line["bare_ns"] = int64(time.Since(begin))
		}
		for _, name := range words[2:] {
			for i := 0; i < n; i++ {
				finished = append(finished, run(kinds[name]))
			}
		}
		for _, o := range finished {
			say(o)
		}
		line["done"] = len(finished)
		say(line)
	}
}
