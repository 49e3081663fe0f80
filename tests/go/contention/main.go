// contention waits for others in known ways a known number of times, on command, and tells what Go's own profile has of it:
//
//	run 40    that many waits of each kind, 3 ms or more each; answers DONE
//	block     its own block profile as text, then a line END
//	leaked    its own profile of leaked goroutines as text (Go 1.27), then a line END
//	leak 5    that many goroutines that nobody can wake; answers DONE
//
// It ends when standard input does. It compiles with Go 1.19 and later.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"
)

const pause = 3 * time.Millisecond

//go:noinline
func receives(c chan int) { <-c }

//go:noinline
func sends(c chan int) { c <- 1 }

//go:noinline
func selects(a, b chan int) {
	select {
	case <-a:
	case <-b:
	}
}

//go:noinline
func locks(mu *sync.Mutex) {
	mu.Lock()
	mu.Unlock()
}

//go:noinline
func readLocks(mu *sync.RWMutex) {
	mu.RLock()
	mu.RUnlock()
}

//go:noinline
func waitsForGroup(group *sync.WaitGroup) { group.Wait() }

//go:noinline
func waitsForCond(cond *sync.Cond, ready *bool) {
	cond.L.Lock()
	for !*ready {
		cond.Wait()
	}
	cond.L.Unlock()
}

//go:noinline
func sleeps() { time.Sleep(pause) }

// Another goroutine does it while this one waits.
func later(do func()) {
	go func() {
		sleeps()
		do()
	}()
}

func round() {
	c, d := make(chan int), make(chan int)
	later(func() { c <- 1 })
	receives(c)
	later(func() { <-c })
	sends(c)
	later(func() { close(d) })
	selects(c, d)
	var mu sync.Mutex
	mu.Lock()
	later(mu.Unlock)
	locks(&mu)
	var rw sync.RWMutex
	rw.Lock()
	later(rw.Unlock)
	readLocks(&rw)
	var group sync.WaitGroup
	group.Add(1)
	later(group.Done)
	waitsForGroup(&group)
	ready, cond := false, sync.NewCond(&sync.Mutex{})
	later(func() {
		cond.L.Lock()
		ready = true
		cond.L.Unlock()
		cond.Signal()
	})
	waitsForCond(cond, &ready)
}

//go:noinline
func forever(c chan int) { <-c }

func main() {
	runtime.SetBlockProfileRate(1)
	fmt.Println("READY")
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		words := append(strings.Fields(commands.Text()), "0")
		n, _ := strconv.Atoi(words[1])
		switch words[0] {
		case "run":
			for i := 0; i < n; i++ {
				round()
			}
			fmt.Println("DONE")
		case "leak":
			for i := 0; i < n; i++ {
				go forever(make(chan int))
			}
			fmt.Println("DONE")
		case "block":
			pprof.Lookup("block").WriteTo(os.Stdout, 1)
			fmt.Println("END")
		case "leaked":
			if profile := pprof.Lookup("goroutineleak"); profile != nil {
				profile.WriteTo(os.Stdout, 1)
			}
			fmt.Println("END")
		}
	}
}
