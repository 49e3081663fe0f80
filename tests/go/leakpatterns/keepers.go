package main

import (
	"context"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The ways in which what wakes a goroutine is held: by a variable, by somebody who runs or will run, or by the
// runtime. Each calls it once letGo was called.
var keepers = []func(wake func()){
	inSlice, inMap, inData, inList, inLargeObject, byInteriorPointer, inChannel, inContext, inInterface, inSyncMap,
	onSleepersStack, onReadersStack, onStackInSystemCall, onStackBehindChannel, onStackBehindMutex,
	onStackBehindCondition, onStackBehindWaitGroup, deferred, deferredInLoop, byTimer, byTickersStack,
	byFinalizer, byQueuedFinalizer, byCleanup, byQueuedCleanup, whileRunning, inSelectOfTwo, throughTwoOthers,
}

// What is done when all are let go; closed over by what must not hold the wakers.
var (
	releasing int32
	released  = make(chan struct{})
	last      sync.Mutex
	lasts     []func()
)

func later(f func()) {
	last.Lock()
	lasts = append(lasts, f)
	last.Unlock()
}

func letGo() {
	atomic.StoreInt32(&releasing, 1)
	close(released)
	last.Lock()
	defer last.Unlock()
	for _, f := range lasts {
		f()
	}
}

func isReleasing() bool { return atomic.LoadInt32(&releasing) == 1 }

// Variables.

var slice []func()

func inSlice(wake func()) {
	slice = append(slice, wake)
	n := len(slice) - 1
	later(func() { slice[n]() })
}

var byNumber = map[int]func(){}

func inMap(wake func()) {
	n := len(byNumber)
	byNumber[n] = wake
	later(func() { byNumber[n]() })
}

// Not zero when the program starts.
var data = struct {
	name string
	used int
	wake [64]func()
}{name: "data", wake: [64]func(){0: func() {}}}

func inData(wake func()) {
	data.used++
	n := data.used
	data.wake[n] = wake
	later(func() { data.wake[n]() })
}

// Fills its size class, so that no rest of an older object is behind it.
type node struct {
	next *node
	pad  [4]uint64
	wake func()
}

var head *node

func inList(wake func()) {
	tail := &node{wake: wake}
	first := tail
	for i := 0; i < 1000; i++ {
		first = &node{next: first}
	}
	tail.next = head
	head = first
	later(func() {
		for at := head; at != nil; at = at.next {
			if at.wake != nil {
				at.wake()
				at.wake = nil
			}
		}
	})
}

type large struct {
	pad  [5000]uint64
	wake func()
}

var larges []*large

func inLargeObject(wake func()) {
	l := &large{wake: wake}
	larges = append(larges, l)
	n := len(larges) - 1
	later(func() { larges[n].wake() })
}

type inner struct{ wake func() }

type outer struct {
	before [20]string
	inner  inner
	after  [20]string
}

var inners []*inner

func byInteriorPointer(wake func()) {
	o := &outer{inner: inner{wake}}
	inners = append(inners, &o.inner)
	n := len(inners) - 1
	later(func() { inners[n].wake() })
}

var queue = make(chan func(), 100)

func inChannel(wake func()) {
	queue <- wake
	later(func() { (<-queue)() })
}

type key int

var contexts []context.Context

func inContext(wake func()) {
	ctx := context.WithValue(context.Background(), key(1), wake)
	ctx = context.WithValue(ctx, key(2), "nothing")
	contexts = append(contexts, ctx)
	n := len(contexts) - 1
	later(func() { contexts[n].Value(key(1)).(func())() })
}

type waker interface{ Wake() }
type wakes struct{ f func() }

func (w wakes) Wake() { w.f() }

var interfaces []waker

func inInterface(wake func()) {
	interfaces = append(interfaces, wakes{wake})
	n := len(interfaces) - 1
	later(func() { interfaces[n].Wake() })
}

var shared sync.Map

func inSyncMap(wake func()) {
	n := new(int)
	shared.Store(n, wake)
	later(func() {
		f, _ := shared.Load(n)
		f.(func())()
	})
}

// Stacks of those that run, or will.

func onSleepersStack(wake func()) {
	go func() {
		for !isReleasing() {
			time.Sleep(5 * time.Millisecond)
		}
		wake()
	}()
}

func onReadersStack(wake func()) {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	go func() {
		var b [1]byte
		_, _ = r.Read(b[:])
		wake()
	}()
	later(func() { w.Close() })
}

func onStackInSystemCall(wake func()) {
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		panic(err)
	}
	go func() {
		var b [1]byte
		_, _ = syscall.Read(fds[0], b[:])
		wake()
	}()
	later(func() { syscall.Close(fds[1]) })
}

func onStackBehindChannel(wake func()) {
	go func() {
		<-released
		wake()
	}()
}

var behind struct {
	sync.Mutex
	once sync.Once
}

func onStackBehindMutex(wake func()) {
	behind.once.Do(func() {
		behind.Lock()
		later(behind.Unlock)
	})
	go func() {
		behind.Lock()
		behind.Unlock()
		wake()
	}()
}

var condition = sync.NewCond(new(sync.Mutex))

func onStackBehindCondition(wake func()) {
	go func() {
		condition.L.Lock()
		for !isReleasing() {
			condition.Wait()
		}
		condition.L.Unlock()
		wake()
	}()
	later(condition.Broadcast)
}

func onStackBehindWaitGroup(wake func()) {
	group := new(sync.WaitGroup)
	group.Add(1)
	go func() {
		group.Wait()
		wake()
	}()
	later(group.Done)
}

// Nothing but the record of the deferred call refers to it.
func deferred(wake func()) {
	go deferring(wake)
}

//go:noinline
func deferring(wake func()) {
	defer wake()
	wait()
}

//go:noinline
func wait() { <-released }

func deferredInLoop(wake func()) {
	go func() {
		for i := 0; i < 3; i++ {
			if i == 1 {
				defer wake()
			} else {
				defer func() {}()
			}
		}
		wait()
	}()
}

// The runtime.

func byTimer(wake func()) {
	time.AfterFunc(20*time.Millisecond, func() {
		if isReleasing() {
			wake()
		} else {
			byTimer(wake)
		}
	})
}

func byTickersStack(wake func()) {
	go func() {
		ticker := time.NewTicker(3 * time.Millisecond)
		defer ticker.Stop()
		for range ticker.C {
			if isReleasing() {
				wake()
				return
			}
		}
	}()
}

type object struct{ name [40]byte }

var objects []*object

// The finalizer's closure holds it, and the runtime holds the closure.
func byFinalizer(wake func()) {
	o := new(object)
	runtime.SetFinalizer(o, func(*object) { wake() })
	objects = append(objects, o)
	n := len(objects) - 1
	later(func() { objects[n] = nil })
}

var finalizing sync.Once

// Nothing but the runtime's queue holds it: the finalizer that is being run waits until all are let go.
func byQueuedFinalizer(wake func()) {
	blockAllFinalizers()
	finalize(wake)
}

func blockAllFinalizers() {
	finalizing.Do(func() {
		begun := make(chan struct{})
		blockFinalizers(begun)
		for {
			runtime.GC()
			select {
			case <-begun:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
}

//go:noinline
func blockFinalizers(begun chan struct{}) {
	runtime.SetFinalizer(new(object), func(*object) {
		close(begun)
		<-released
	})
}

//go:noinline
func finalize(wake func()) {
	runtime.SetFinalizer(new(object), func(*object) { wake() })
}

var spinning int32

// Holds it in a register or on its stack; one really runs all the time.
func whileRunning(wake func()) {
	busy := atomic.AddInt32(&spinning, 1) == 1
	go func() {
		for n := 0; !isReleasing(); n++ {
			if busy {
				for i := 0; i < 1000; i++ {
					n ^= i
				}
			} else {
				time.Sleep(time.Microsecond)
			}
		}
		wake()
	}()
}

// The other case has no sender.
func inSelectOfTwo(wake func()) {
	go func() {
		select {
		case <-make(chan int):
		case <-released:
		}
		wake()
	}()
}

// Who holds it waits for somebody who waits for a third.
func throughTwoOthers(wake func()) {
	first, second := make(chan func()), make(chan func())
	go func() {
		(<-first)()
	}()
	go func() {
		f := <-second
		first <- f
	}()
	go func() {
		<-released
		second <- wake
	}()
}
