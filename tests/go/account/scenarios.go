package main

import (
	"runtime"
	"sync"
	"time"
)

// The scenarios whose account is exact. Each goroutine begins with begin and ends with end; each wait
// is arranged to last *nap, well over any threshold that a test sets.

var scenarios = []struct {
	name string
	run  func(*goroutine)
}{
	{"family", family},
	{"channels", channels},
	{"locks", locks},
	{"timers", timers},
	{"network", network},
	{"syscalls", syscalls},
	{"endings", endings},
	{"yields", yields},
	{"coroutines", coroutines},
	{"cgo", cgoCalls},
	{"gc", collections},
	{"leaks", leaks},
}

func scenarioNames() []string {
	// Not from the table above: it would be an initialization loop.
	return []string{"family", "channels", "locks", "timers", "network", "syscalls", "endings", "yields",
		"coroutines", "cgo", "gc", "leaks", "storm"}
}

// family grows a tree: three children, each with three, each with two.
func family(me *goroutine) {
	var wg sync.WaitGroup
	wg.Add(1)
	b := me.forks()
	go ancestor(b, &wg)
	wg.Wait()
}

func ancestor(b birth, wg *sync.WaitGroup) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	var own sync.WaitGroup
	for i := 0; i < 3; i++ {
		own.Add(1)
		b := g.forks()
		go child(b, &own, i)
	}
	g.join(&own)
}

func child(b birth, wg *sync.WaitGroup, i int) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	var own sync.WaitGroup
	for j := 0; j < 3; j++ {
		own.Add(1)
		j := j
		b := g.forks()
		go func() {
			g := b.begin()
			defer g.end()
			defer own.Done()
			var last sync.WaitGroup
			for k := 0; k < 2; k++ {
				last.Add(1)
				b := g.forks()
				go leaf(b, &last, i*100+j*10+k)
			}
			g.join(&last)
		}()
	}
	g.join(&own)
}

func leaf(b birth, wg *sync.WaitGroup, v int) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	g.sleep(*nap)
	result(uint64(v))
}

// join waits for a WaitGroup; who was the last to be done is open.
func (g *goroutine) join(wg *sync.WaitGroup) {
	w := g.waits("waitgroup")
	wg.Wait()
	w.over("")
}

func channels(me *goroutine) {
	var wg sync.WaitGroup
	values, echoes, picks, nothing := make(chan int64), make(chan int64), make(chan int64), make(chan int64)

	wg.Add(1)
	b := me.forks()
	go receiver(b, &wg, values)
	wg.Add(1)
	b = me.forks()
	go lateSender(b, &wg, values)

	wg.Add(1)
	b = me.forks()
	go sender(b, &wg, echoes)
	wg.Add(1)
	b = me.forks()
	go lateReceiver(b, &wg, echoes)

	wg.Add(1)
	b = me.forks()
	go selector(b, &wg, picks, nothing)
	wg.Add(1)
	b = me.forks()
	go lateSender(b, &wg, picks)

	wg.Add(1)
	b = me.forks()
	go selectorWithTimeout(b, &wg, nothing)
	wg.Wait()
}

func receiver(b birth, wg *sync.WaitGroup, c <-chan int64) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	w := g.waits("chan receive")
	by := <-c
	w.overBy(by)
	result(1)
}

func lateSender(b birth, wg *sync.WaitGroup, c chan<- int64) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	g.sleep(*nap)
	c <- g.Goid
	result(2)
}

func sender(b birth, wg *sync.WaitGroup, c chan<- int64) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	w := g.waits("chan send")
	c <- g.Goid
	w.over("")
	result(3)
}

func lateReceiver(b birth, wg *sync.WaitGroup, c <-chan int64) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	g.sleep(*nap)
	<-c
	result(4)
}

func selector(b birth, wg *sync.WaitGroup, picks, nothing <-chan int64) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	w := g.waits("select")
	select {
	case by := <-picks:
		w.overBy(by)
	case <-nothing:
		panic("nobody sends here")
	}
	result(5)
}

func selectorWithTimeout(b birth, wg *sync.WaitGroup, nothing <-chan int64) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	timer := time.NewTimer(*nap)
	w := g.waits("select")
	select {
	case <-nothing:
		panic("nobody sends here")
	case <-timer.C:
		w.over("timer")
	}
	result(6)
}

func locks(me *goroutine) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var rw, wr sync.RWMutex
	cond := sync.NewCond(&sync.Mutex{})
	held := make(chan struct{}, 3)
	open := false

	wg.Add(1)
	b := me.forks()
	go func() {
		g := b.begin()
		defer g.end()
		defer wg.Done()
		mu.Lock()
		rw.Lock()
		wr.RLock()
		held <- struct{}{}
		g.sleep(*nap)
		mu.Unlock()
		g.sleep(*nap)
		rw.Unlock()
		g.sleep(*nap)
		wr.RUnlock()
		g.sleep(*nap)
		cond.L.Lock()
		open = true
		cond.L.Unlock()
		cond.Signal()
		result(7)
	}()
	<-held
	wg.Add(1)
	b1 := me.forks()
	go waiter(b1, &wg, "mutex", func() { mu.Lock(); mu.Unlock() })
	wg.Add(1)
	b2 := me.forks()
	go waiter(b2, &wg, "rwmutex read", func() { rw.RLock(); rw.RUnlock() })
	wg.Add(1)
	b3 := me.forks()
	go waiter(b3, &wg, "rwmutex write", func() { wr.Lock(); wr.Unlock() })
	wg.Add(1)
	b4 := me.forks()
	go waiter(b4, &wg, "cond", func() {
		cond.L.Lock()
		for !open {
			cond.Wait()
		}
		cond.L.Unlock()
	})
	wg.Wait()
}

func waiter(b birth, wg *sync.WaitGroup, kind string, block func()) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	w := g.waits(kind).within(block)
	block()
	w.over("")
	result(8)
}

func timers(me *goroutine) {
	var wg sync.WaitGroup
	wg.Add(1)
	b := me.forks()
	go func() {
		g := b.begin()
		defer g.end()
		defer wg.Done()
		g.sleep(*nap)
		timer := time.NewTimer(*nap)
		w := g.waits("chan receive")
		<-timer.C
		w.over("timer")
		result(9)
	}()
	// The goroutine of an AfterFunc is born by the timer, on the scheduler's stack: it has no parent.
	wg.Add(1)
	spawn := now()
	time.AfterFunc(*nap, func() {
		g := birth{by: "time.goFunc", spawnNS: spawn}.beginAs("afterfunc", "")
		defer g.end()
		defer wg.Done()
		g.sleep(*nap)
		result(10)
	})
	wg.Wait()
}

func endings(me *goroutine) {
	var wg sync.WaitGroup
	for i := 0; i < 3; i++ {
		wg.Add(1)
		b := me.forks()
		go panicking(b, &wg, i)
		wg.Add(1)
		b = me.forks()
		go leaving(b, &wg)
		wg.Add(1)
		b = me.forks()
		go locked(b, &wg)
	}
	wg.Wait()
}

func panicking(b birth, wg *sync.WaitGroup, i int) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	defer func() { result(uint64(recover().(int))) }()
	deeper(i, 5)
}

func leaving(b birth, wg *sync.WaitGroup) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	defer result(11)
	runtime.Goexit()
}

// locked ends without unlocking: the runtime ends its thread too.
func locked(b birth, wg *sync.WaitGroup) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	runtime.LockOSThread()
	g.sleep(*nap)
	result(12)
}

// yields runs goroutines that are preempted and that yield, and never wait.
func yields(me *goroutine) {
	var wg sync.WaitGroup
	for i := 0; i < 4; i++ {
		wg.Add(1)
		b := me.forks()
		go spinner(b, &wg, i%2 == 0)
	}
	wg.Wait()
}

func spinner(b birth, wg *sync.WaitGroup, polite bool) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	x := uint64(1)
	for i := 0; i < 20_000_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
		if polite && i%500_000 == 0 {
			runtime.Gosched()
		}
	}
	result(x)
}

var garbage [][]byte

// collections makes garbage and collects it, while a neighbour works.
func collections(me *goroutine) {
	var wg sync.WaitGroup
	wg.Add(1)
	b := me.forks()
	go func() {
		g := b.begin()
		defer g.end()
		defer wg.Done()
		g.FreeWaits = true
		for i := 0; i < 2; i++ {
			garbage = nil
			for j := 0; j < 256; j++ {
				garbage = append(garbage, make([]byte, 16<<10))
			}
			runtime.GC()
		}
		result(uint64(len(garbage)))
	}()
	wg.Wait()
}

// leaks leaves goroutines behind that never end.
func leaks(me *goroutine) {
	var mu sync.Mutex
	mu.Lock()
	forever := []struct {
		kind  string
		block func()
	}{
		{"chan receive", func() { <-make(chan int) }},
		{"chan send", func() { make(chan int) <- 1 }},
		{"chan receive (nil chan)", func() { var c chan int; <-c }},
		{"chan send (nil chan)", func() { var c chan int; c <- 1 }},
		{"select (no cases)", func() { select {} }},
		{"mutex", func() { mu.Lock() }},
	}
	started := make(chan struct{}, len(forever))
	for _, f := range forever {
		f := f
		b := me.forks()
		go func() {
			g := b.begin()
			started <- struct{}{}
			w := g.waits(f.kind).within(f.block)
			f.block()
			w.over("")
		}()
	}
	for range forever {
		<-started
	}
	result(uint64(len(forever)))
	time.Sleep(*nap)
	runtime.KeepAlive(&mu)
}
