package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	// How long a handler waits, where it does.
	wait = 5 * time.Millisecond
	// What a slow one takes, for those who ask for slow ones only.
	slow = 60 * time.Millisecond

	clockThreadCPU = 3
)

// A kind of request.
type kind struct {
	name, method, path string
	// How a ServeMux knows it, with patterns and without; the route as it is to be told.
	pattern, plain, route string
	// How it is to end.
	ended string
	// Over HTTP/2; without a traceparent; behind a middleware that copies the request; many at once.
	http2, bare, copied, atOnce bool
	// Before a request, by the client: somebody who will end its wait.
	before  func(*own)
	handler func(*own, http.ResponseWriter, *http.Request)
}

var kinds = map[string]*kind{}

// Handlers wait in functions of their own, whose names are then in stacks.
func init() {
	for _, k := range []*kind{
		{name: "sleep", handler: only(sleeps)},
		{name: "mutex_sleeping", before: held(time.Sleep), handler: only(locks)},
		{name: "mutex_computing", before: held(burn), handler: only(locks)},
		{name: "channel", before: answered, handler: only(receives)},
		{name: "select", before: answered, handler: only(selects)},
		{name: "waitgroup", handler: only(waits)},
		{name: "cpu", handler: only(computes)},
		{name: "assist", handler: only(allocates)},
		{name: "io", handler: only(reads)},
		{name: "syscall", before: piped, handler: only(readsPipe)},
		{name: "raw", handler: only(sleepsRaw)},
		{name: "fast", handler: only(func(*own) {})},
		{name: "slow", handler: only(sleepsLong)},
		{name: "bare", bare: true, handler: only(sleeps)},
		{name: "abort", ended: "panic", handler: only(func(o *own) { sleeps(o); panic(http.ErrAbortHandler) })},
		{name: "panic", ended: "panic", handler: only(func(o *own) { sleeps(o); panic("on purpose") })},
		{name: "recovered", handler: recovers},
		{name: "goexit", ended: "goroutine_exit", handler: only(func(o *own) { sleeps(o); runtime.Goexit() })},
		{name: "hijack", ended: "hijacked", handler: hijacks},
		{name: "gone", handler: staysUntilGone},
		{name: "timeout", handler: only(sleepsLong)},
		{name: "behind", handler: only(leaves)},
		{name: "endless", handler: only(staysUntilReleased)},
		{name: "user", method: "GET", path: "/user/17", pattern: "GET /user/{id}", plain: "/user/", route: "/user/{id}", handler: only(sleeps)},
		{name: "copied", method: "GET", path: "/copied/17/of/3", pattern: "GET /copied/{id}/of/{n}", plain: "/copied/", route: "/copied/{id}/of/{n}", copied: true, handler: only(sleeps)},
		{name: "stripped", method: "GET", path: "/api/things/17", pattern: "/things/{id}", plain: "/things/", route: "/things/{id}", handler: only(sleeps)},
		{name: "post", method: "POST", path: "/post", pattern: "POST /post", plain: "/post", route: "/post", handler: readsBody},
		{name: "failing", handler: fails},
		{name: "nowhere", pattern: "-"},
		{name: "http2", http2: true, handler: only(sleeps)},
		{name: "http2_abort", http2: true, ended: "panic", handler: only(func(o *own) { sleeps(o); panic(http.ErrAbortHandler) })},
		{name: "streams", http2: true, atOnce: true, handler: only(sleeps)},
	} {
		if k.method == "" {
			k.method = "GET"
		}
		if k.path == "" {
			k.path = "/" + k.name
		}
		if k.ended == "" {
			k.ended = "normal"
		}
		switch k.pattern {
		case "":
			k.pattern, k.plain, k.route = k.path, k.path, k.path
		case "-":
			k.pattern = ""
		}
		kinds[k.name] = k
	}
}

func only(f func(*own)) func(*own, http.ResponseWriter, *http.Request) {
	return func(o *own, _ http.ResponseWriter, _ *http.Request) { f(o) }
}

func threadClock() int64 {
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPU, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

// Uses so much of its thread's time.
func burn(d time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for until := threadClock() + int64(d); threadClock() < until; {
		for i, sum := 0, 0; i < 5000; i++ {
			sum ^= i * i
		}
	}
}

//go:noinline
func sleeps(o *own) {
	begin := time.Now()
	time.Sleep(wait)
	o.add("wait", begin)
}

//go:noinline
func sleepsLong(*own) { time.Sleep(slow) }

var mu sync.Mutex

// Has somebody lock the mutex, and unlock it some time after the handler has come.
func held(while func(time.Duration)) func(*own) {
	asked := make(chan *own)
	locked := make(chan struct{})
	once := new(sync.Once)
	return func(o *own) {
		once.Do(func() { go holder(while, asked, locked) })
		asked <- o
		<-locked
	}
}

func holder(while func(time.Duration), asked chan *own, locked chan struct{}) {
	for o := range asked {
		o.Partner = goid()
		mu.Lock()
		locked <- struct{}{}
		<-o.arrived
		while(wait)
		mu.Unlock()
	}
}

//go:noinline
func locks(o *own) {
	o.arrived <- struct{}{}
	begin := time.Now()
	mu.Lock()
	o.add("wait", begin)
	mu.Unlock()
}

// What a worker sends, of whom there is one.
var (
	answers = make(chan int)
	never   = make(chan int)
	answer  = make(chan *own)
)

func worker() {
	for o := range answer {
		o.Partner = goid()
		<-o.arrived
		time.Sleep(wait)
		answers <- 1
	}
}

func answered(o *own) { answer <- o }

//go:noinline
func receives(o *own) {
	o.arrived <- struct{}{}
	begin := time.Now()
	<-answers
	o.add("wait", begin)
}

//go:noinline
func selects(o *own) {
	o.arrived <- struct{}{}
	begin := time.Now()
	select {
	case <-answers:
	case <-never:
	}
	o.add("wait", begin)
}

//go:noinline
func waits(o *own) {
	var children sync.WaitGroup
	begin, left := time.Now(), int32(3)
	children.Add(3)
	for i := 1; i <= 3; i++ {
		go child(time.Duration(i)*2*time.Millisecond, &left, o, &children)
	}
	o.add("starting", begin)
	begin = time.Now()
	children.Wait()
	o.add("wait", begin)
}

func child(d time.Duration, left *int32, o *own, children *sync.WaitGroup) {
	time.Sleep(d)
	if atomic.AddInt32(left, -1) == 0 {
		o.Partner = goid()
	}
	children.Done()
}

//go:noinline
func computes(o *own) {
	runtime.LockOSThread()
	before := threadClock()
	burn(wait)
	o.Phases["cpu"] += threadClock() - before
	runtime.UnlockOSThread()
}

type node struct {
	next *node
	_    [6]uint64
}

// What the collector has to mark.
var live *node

// Allocates while the collector works, so that it is made to help.
//
//go:noinline
func allocates(*own) {
	for i := 0; i < 1<<14; i++ {
		garbage = make([]*node, 1<<7)
	}
}

var garbage []*node

// A peer on TCP that takes its time.
var peer = func() net.Conn {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go func() {
		c, err := l.Accept()
		must(err)
		in := bufio.NewReader(c)
		for {
			if _, err := in.ReadString('\n'); err != nil {
				return
			}
			time.Sleep(wait)
			fmt.Fprintln(c, "late")
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	must(err)
	return c
}()

//go:noinline
func reads(o *own) {
	o.Peer = peer.RemoteAddr().String()
	var buffer [16]byte
	fmt.Fprintln(peer, "now")
	begin := time.Now()
	_, err := peer.Read(buffer[:])
	o.add("wait", begin)
	must(err)
}

// A pipe whose reader the poller does not know.
var pipe [2]int

// Has somebody write to the pipe, some time after the handler has come.
func piped(o *own) {
	go func() {
		<-o.arrived
		time.Sleep(wait)
		_, err := syscall.Write(pipe[1], []byte{1})
		must(err)
	}()
}

//go:noinline
func readsPipe(o *own) {
	var buffer [1]byte
	o.arrived <- struct{}{}
	begin := time.Now()
	_, err := syscall.Read(pipe[0], buffer[:])
	o.add("syscall", begin)
	must(err)
}

// In a system call of which the runtime does not know.
//
//go:noinline
func sleepsRaw(o *own) {
	ts := syscall.NsecToTimespec(int64(3 * time.Millisecond))
	begin := time.Now()
	syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
	o.add("descheduled", begin)
}

func hijacks(o *own, w http.ResponseWriter, _ *http.Request) {
	c, _, err := w.(http.Hijacker).Hijack()
	must(err)
	io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	c.Close()
	sleeps(o)
}

// Panics, as a middleware sees it that answers then.
func recovers(o *own, w http.ResponseWriter, _ *http.Request) {
	defer func() {
		if recover() != nil {
			http.Error(w, "on purpose", http.StatusInternalServerError)
		}
	}()
	sleeps(o)
	panic("on purpose")
}

//go:noinline
func staysUntilGone(o *own, _ http.ResponseWriter, r *http.Request) {
	o.arrived <- struct{}{}
	<-r.Context().Done()
}

// Goes without those whom it started.
func leaves(o *own) {
	for i := 0; i < 2; i++ {
		go time.Sleep(slow)
	}
	sleeps(o)
}

var release = make(chan struct{})

//go:noinline
func staysUntilReleased(o *own) {
	o.arrived <- struct{}{}
	begin := time.Now()
	<-release
	o.add("wait", begin)
}

func readsBody(o *own, w http.ResponseWriter, r *http.Request) {
	_, err := io.Copy(io.Discard, r.Body)
	must(err)
	sleeps(o)
	w.WriteHeader(http.StatusCreated)
}

func fails(o *own, w http.ResponseWriter, _ *http.Request) {
	sleeps(o)
	http.Error(w, "on purpose", http.StatusInternalServerError)
}

func init() {
	must(syscall.Pipe(pipe[:]))
	go worker()
	// What others have put into the environment is theirs.
	os.Unsetenv("HTTP_PROXY")
}
