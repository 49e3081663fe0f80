// Parks goroutines in every way that the runtime knows, and tells their stacks itself: on the line
// "stacks" of standard input it prints runtime.Stack of all, on "profile" its goroutine profile, on SIGQUIT
// the runtime does. Nothing moves in between. Ends with its input.
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Goroutines that are about to park.
var ready sync.WaitGroup

// Kept reachable, so that nothing is finalized or called a leak.
var keep []any

// Addresses of the locks.
var objects string

//go:noinline
func forever(c chan int) int { return <-c }

type object struct{ name string }

func (o object) run(c chan int)             { ready.Done(); forever(c) }
func (o *object) method(a, b int, s string) { ready.Done(); forever(make(chan int)) }

type runner interface{ run(chan int) }

func generic[T any](v T) T {
	ready.Done()
	c := make(chan T)
	return <-c
}

//go:noinline
func deep(n int, c chan int) int {
	if n == 0 {
		ready.Done()
		return forever(c)
	}
	return deep(n-1, c) + 1
}

// Inlined into its callers, which are inlined into each other.
func inner(c chan int)  { ready.Done(); <-c }
func middle(c chan int) { inner(c) }
func outer(c chan int)  { middle(c) }

func nilPointer(p *object) string { return p.name }

//go:noinline
func faults(c chan int) {
	defer func() {
		ready.Done()
		forever(c)
	}()
	fmt.Println(nilPointer(nil))
}

func panics(c chan int) {
	defer func() {
		defer func() { _ = recover() }()
		ready.Done()
		forever(c)
	}()
	panic("expected")
}

func spawn(f func()) {
	ready.Add(1)
	go f()
}

func channels() {
	full := make(chan int, 3)
	full <- 1
	full <- 2
	full <- 3
	keep = append(keep, full)
	spawn(func() { ready.Done(); full <- 4 })
	spawn(func() { ready.Done(); full <- 5 })
	empty := make(chan [16]byte, 7)
	keep = append(keep, empty)
	spawn(func() { ready.Done(); <-empty })
	spawn(func() {
		ready.Done()
		for range empty {
		}
	})
	spawn(func() { ready.Done(); var c chan int; <-c })
	spawn(func() { ready.Done(); var c chan int; c <- 1 })
	spawn(func() { ready.Done(); select {} })
	spawn(func() {
		ready.Done()
		select {
		case <-empty:
		case full <- 6:
		case <-time.After(time.Hour):
		}
	})
	one := make(chan struct{})
	keep = append(keep, one)
	spawn(func() {
		ready.Done()
		select {
		case one <- struct{}{}:
		case full <- 7:
		}
	})
}

func locks() {
	var mutex sync.Mutex
	mutex.Lock()
	spawn(func() { ready.Done(); mutex.Lock() })
	var writing, reading, both sync.RWMutex
	writing.Lock()
	spawn(func() { ready.Done(); writing.RLock() })
	reading.RLock()
	spawn(func() { ready.Done(); reading.Lock() })
	both.Lock()
	spawn(func() { ready.Done(); both.Lock() })
	var group sync.WaitGroup
	group.Add(1)
	spawn(func() { ready.Done(); group.Wait() })
	cond := sync.NewCond(new(sync.Mutex))
	spawn(func() { cond.L.Lock(); ready.Done(); cond.Wait() })
	keep = append(keep, &mutex, &writing, &reading, &both, &group, cond)
	objects = fmt.Sprintf("mutex %p writing %p reading %p both %p group %p cond %p", &mutex, &writing, &reading, &both, &group, cond)
}

func outside() {
	spawn(func() { ready.Done(); time.Sleep(time.Hour) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	spawn(func() { ready.Done(); _, _ = listener.Accept() })
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	spawn(func() { ready.Done(); _, _ = r.Read(make([]byte, 1)) })
	var blocking [2]int
	if err := syscall.Pipe(blocking[:]); err != nil {
		panic(err)
	}
	spawn(func() { ready.Done(); _, _ = syscall.Read(blocking[0], make([]byte, 1)) })
	spawn(func() { runtime.LockOSThread(); ready.Done(); forever(make(chan int)) })
	ready.Add(1)
	time.AfterFunc(0, func() { ready.Done(); forever(make(chan int)) })
	keep = append(keep, listener, r, w)
	objects += fmt.Sprintf(" fd:listener %#x fd:pipe %#x", number(listener.(*net.TCPListener)), number(r))
}

// number of a descriptor; Fd would make it blocking.
func number(of syscall.Conn) uintptr {
	raw, err := of.SyscallConn()
	if err != nil {
		panic(err)
	}
	var number uintptr
	if err := raw.Control(func(fd uintptr) { number = fd }); err != nil {
		panic(err)
	}
	return number
}

func calls() {
	c := make(chan int)
	keep = append(keep, c)
	spawn(func() { deep(10, c) })
	spawn(func() { deep(300, c) })
	spawn(func() { deep(20000, c) })
	spawn(func() { outer(c) })
	spawn(func() { faults(c) })
	spawn(func() { panics(c) })
	spawn(func() { generic(1) })
	spawn(func() { generic("s") })
	spawn(func() { generic(map[string][]int{}) })
	ready.Add(4)
	go (&object{"x"}).method(1, 2, "three")
	var r runner = object{"y"}
	go r.run(c)
	var p runner = &object{"z"}
	go p.run(c)
	f := (&object{"m"}).method
	go f(4, 5, "six")
}

func labelled() {
	labels := pprof.Labels("endpoint", "/orders", "tenant", "blue")
	pprof.Do(context.Background(), labels, func(context.Context) {
		spawn(func() { ready.Done(); forever(make(chan int)) })
	})
	var many []string
	for i := 0; i < 20; i++ {
		many = append(many, fmt.Sprintf("key%02d", i), fmt.Sprintf("value%d", i))
	}
	pprof.Do(context.Background(), pprof.Labels(many...), func(context.Context) {
		spawn(func() { ready.Done(); forever(make(chan int)) })
	})
}

var finalizing atomic.Bool

func finalizer() {
	o := &object{"finalized"}
	ready.Add(1)
	runtime.SetFinalizer(o, func(o *object) { finalizing.Store(true); ready.Done(); forever(make(chan int)) })
	o = nil
	for !finalizing.Load() {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
}

// Set where the program is built for it.
var extras []func()

func main() {
	channels()
	locks()
	outside()
	calls()
	labelled()
	for _, f := range extras {
		f()
	}
	ready.Wait()
	finalizer()
	ready.Wait()
	runtime.GC()
	debug.SetGCPercent(-1)
	// Those that have said that they park, park.
	time.Sleep(300 * time.Millisecond)
	fmt.Println("READY", objects)
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		switch strings.TrimSpace(input.Text()) {
		case "stacks":
			buffer := make([]byte, 16<<20)
			buffer = buffer[:runtime.Stack(buffer, true)]
			os.Stdout.Write(buffer)
			fmt.Println("\nEND")
		case "profile":
			pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)
			fmt.Println("END")
		}
	}
	runtime.KeepAlive(keep)
}
