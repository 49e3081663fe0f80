// Uses the processors in goroutines of several kinds, and tells what each kind has used by the clocks of the threads that
// it ran on, and the whole process by its own: one line of JSON.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// What all goroutines that run a function have used, in nanoseconds.
type account struct {
	Spinner  int64 `json:"main.spinner"`
	Napper   int64 `json:"main.napper"`
	Reader   int64 `json:"main.reader"`
	Passer   int64 `json:"main.passer"`
	Short    int64 `json:"main.short"`
	Process  int64 `json:"process"`
	Elapsed  int64 `json:"elapsed"`
	Children int64 `json:"short_ones"`
}

const clockThreadCPU = 3

func threadClock() int64 {
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPU, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

func processClock() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(0, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

// Keeps a processor busy for so long.
func burn(d time.Duration) int {
	sum := 0
	for begin := time.Now(); time.Since(begin) < d; {
		for i := 0; i < 200; i++ {
			sum ^= i * i
		}
	}
	return sum
}

// On a thread of its own, whose clock is then the goroutine's.
func own(total *int64, f func()) {
	runtime.LockOSThread()
	begin := threadClock()
	f()
	atomic.AddInt64(total, threadClock()-begin)
	runtime.UnlockOSThread()
}

//go:noinline
func spinner(total *int64, until time.Time, done *sync.WaitGroup) {
	defer done.Done()
	own(total, func() {
		for time.Now().Before(until) {
			burn(time.Millisecond)
		}
	})
}

//go:noinline
func napper(total *int64, until time.Time, done *sync.WaitGroup) {
	defer done.Done()
	own(total, func() {
		for time.Now().Before(until) {
			burn(3 * time.Millisecond)
			time.Sleep(2 * time.Millisecond)
		}
	})
}

// Much of it is in system calls.
//
//go:noinline
func reader(total *int64, until time.Time, done *sync.WaitGroup) {
	defer done.Done()
	file, err := os.Open("/dev/zero")
	if err != nil {
		panic(err)
	}
	defer file.Close()
	buffer := make([]byte, 1<<18)
	own(total, func() {
		for time.Now().Before(until) {
			if _, err := file.Read(buffer); err != nil {
				panic(err)
			}
			burn(100 * time.Microsecond)
		}
	})
}

// Not on a thread of its own, and stopped and put elsewhere when the scheduler likes: what it uses between two looks at a
// clock counts where both are of one thread.
//
//go:noinline
func passer(total *int64, in, out chan struct{}, until time.Time, done *sync.WaitGroup) {
	defer done.Done()
	defer close(out)
	for range in {
		thread, begin := syscall.Gettid(), threadClock()
		burn(500 * time.Microsecond)
		if used := threadClock() - begin; syscall.Gettid() == thread {
			atomic.AddInt64(total, used)
		}
		if !time.Now().Before(until) {
			return
		}
		out <- struct{}{}
	}
}

// Lives for a fraction of a millisecond, and never waits.
//
//go:noinline
func short(total *int64, done *sync.WaitGroup) {
	thread, begin := syscall.Gettid(), threadClock()
	burn(50 * time.Microsecond)
	if used := threadClock() - begin; syscall.Gettid() == thread {
		atomic.AddInt64(total, used)
	}
	done.Done()
}

func main() {
	in := bufio.NewReader(os.Stdin)
	os.Stdout.WriteString("READY\n")
	if _, err := in.ReadString('\n'); err != nil {
		return
	}
	var told account
	began, used := time.Now(), processClock()
	until := began.Add(1500 * time.Millisecond)
	var done sync.WaitGroup
	there, back := make(chan struct{}, 1), make(chan struct{}, 1)
	done.Add(5)
	go spinner(&told.Spinner, until, &done)
	go napper(&told.Napper, until, &done)
	go reader(&told.Reader, until, &done)
	go passer(&told.Passer, there, back, until, &done)
	go passer(&told.Passer, back, there, until, &done)
	there <- struct{}{}
	for time.Now().Before(until) {
		var shorts sync.WaitGroup
		for i := 0; i < 20; i++ {
			shorts.Add(1)
			told.Children++
			go short(&told.Short, &shorts)
		}
		shorts.Wait()
		time.Sleep(5 * time.Millisecond)
	}
	done.Wait()
	told.Process = processClock() - used
	told.Elapsed = int64(time.Since(began))
	line, err := json.Marshal(told)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
	in.ReadString('\n')
}
