// The smallest programs that show what reported leaks do: `cases NAME`, for ten minutes. What is to be said of each
// stands in tests/tests/live_cases.rs; a case that ends in _ok is a healthy twin, of which nothing is said.
package main

import (
	"context"
	"os"
	"runtime"
	"sort"
	"strings"
	"time"
)

var programs = map[string]func(){
	"shared":     func() { requests(100, true) },  // two more a second wait for one ctx.Done(), 100 were there before
	"shared_ok":  func() { requestsOnce(100) },    // 100 workers that wait for one ctx.Done(), and none since
	"own":        func() { requests(100, false) }, // as shared, with a context each
	"tick":       func() { again(ticking, 0) },    // four more a second, each with a ticker, never to end
	"tick_ok":    func() { again(ticking, 2) },    // each ends after two seconds
	"nap":        func() { again(napping, 0) },    // four more a second, asleep most of the time
	"nap_ok":     func() { again(napping, 2) },    //
	"cap1":       func() { waiters(1) },           // channels of capacity 1 with 24-byte elements (not timers), ten more a second
	"cap2":       func() { waiters(2) },           //
	"cap_ok":     timeouts,                        // time.After in a loop, by eight goroutines
	"selflock":   func() { selflock(true) },       // a mutex locked twice by one goroutine, three more wait
	"lock_ok":    func() { selflock(false) },      // the same lock, held for 50 ms at a time
	"busy_ok":    busy,                            // a mutex held for 300 ms at a time, beside a goroutine that always runs
	"rwlock":     rwlock,                          // RLock, a writer comes, RLock again: each waits for the other
	"cond":       cond,                            // one waits for a mutex that main.(*box).fill holds, asleep; two others wait for its Cond
	"crossed":    func() { crossed(true) },        // two lock two variables in two orders
	"crossed_ok": func() { crossed(false) },       // five lock them in the same order, again and again
	"holder":     holder,                          // eight wait for a mutex that main.flusher holds, asleep
	"near":       func() { group(true, false) },   // a WaitGroup that lacks one Done, beside objects that are in use
	"far":        func() { group(false, false) },  // the same with nothing near
	"group_ok":   func() { group(true, true) },    // Done comes after 300 ms, again and again
	"wrapped":    func() { wrapped(false) },       // a closure with an argument: sends that nobody takes
	"wrapped_ok": func() { wrapped(true) },        // someone takes them
	"finalizer":  func() { finalizer(true) },      // a finalizer that blocks: no other one runs any more
	"final_ok":   func() { finalizer(false) },     //
	"dry":        func() { dry(true) },            // database/sql: two connections, rows never closed, ten callers wait
	"dry_ok":     func() { dry(false) },           // rows are closed
	"idle_ok":    idle,                            // a server with 100 idle keep-alive connections from one peer
	"names":      func() { names() },              // goroutines started through a value, a method, an interface, a closure
	"spawns":     spawns,                          // the same again and again
	"clients_ok": clients,                         // more connections each second, from clients that are silent
	"pool_ok":    pool,                            // more idle connections of an http.Transport each second
	"later_ok":   func() { later(time.Minute) },   // as deadline, with a deadline that is still to come
	"deadline":   deadline,                        // 40 reads without a deadline from a peer that is silent; more each second
}

var keep []any

func requests(already int, shared bool) {
	all, cancel := context.WithCancel(context.Background())
	keep = append(keep, cancel)
	one := func() {
		ctx := all
		if !shared {
			var cancel func()
			ctx, cancel = context.WithCancel(context.Background())
			keep = append(keep, cancel)
		}
		answer := make(chan int)
		keep = append(keep, answer)
		go request(ctx, answer)
	}
	for i := 0; i < already; i++ {
		one()
	}
	for {
		one()
		time.Sleep(500 * time.Millisecond)
	}
}

func requestsOnce(n int) {
	all, cancel := context.WithCancel(context.Background())
	answer := make(chan int)
	keep = append(keep, cancel, answer)
	for i := 0; i < n; i++ {
		go request(all, answer)
	}
	for {
		time.Sleep(100 * time.Millisecond)
	}
}

func request(ctx context.Context, answer chan int) {
	select {
	case <-answer:
	case <-ctx.Done():
	}
}

// again starts four goroutines a second, each of which ends after `seconds` (0: never).
func again(f func(end <-chan time.Time), seconds int) {
	for {
		var end <-chan time.Time
		if seconds > 0 {
			end = time.After(time.Duration(seconds) * time.Second)
		}
		go f(end)
		time.Sleep(250 * time.Millisecond)
	}
}

func ticking(end <-chan time.Time) {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-end:
			return
		}
	}
}

func napping(end <-chan time.Time) {
	for {
		time.Sleep(200 * time.Millisecond)
		select {
		case <-end:
			return
		default:
		}
	}
}

func waiters(capacity int) {
	for {
		in, stop := make(chan []byte, capacity), make(chan struct{})
		keep = append(keep, in, stop)
		go waiter(in, stop)
		time.Sleep(100 * time.Millisecond)
	}
}

func waiter(in chan []byte, stop chan struct{}) {
	select {
	case <-in:
	case <-stop:
	}
}

func timeouts() {
	stop := make(chan struct{})
	keep = append(keep, stop)
	for i := 0; i < 8; i++ {
		go func() {
			for {
				select {
				case <-time.After(3 * time.Second):
				case <-stop:
				}
			}
		}()
	}
}

func main() {
	if len(os.Args) != 2 || programs[os.Args[1]] == nil {
		var names []string
		for n := range programs {
			names = append(names, n)
		}
		sort.Strings(names)
		os.Stderr.WriteString("usage: cases " + strings.Join(names, "|") + "\n")
		os.Exit(2)
	}
	go programs[os.Args[1]]()
	time.Sleep(10 * time.Minute)
	runtime.KeepAlive(keep)
}
