//go:build go1.23

package main

import (
	"iter"
	"sync"
)

// coroutines pulls from an iterator: the sequence runs in a goroutine of its own that the scheduler
// never sees; control is handed over directly.
func coroutines(me *goroutine) {
	var wg sync.WaitGroup
	wg.Add(2)
	b := me.forks()
	go puller(b, &wg, true)
	b = me.forks()
	go puller(b, &wg, false)
	wg.Wait()
}

func puller(b birth, wg *sync.WaitGroup, toTheEnd bool) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	spawn := now()
	next, stop := iter.Pull(func(yield func(int) bool) {
		c := birth{parent: g.Goid, by: "iter.Pull[...]", spawnNS: spawn}.beginAs("coroutine", "runtime.corostart")
		defer c.end()
		for i := 0; i < 3; i++ {
			w := c.waits("coroutine")
			more := yield(i)
			w.over("")
			if !more {
				return
			}
		}
		// The puller waits while the sequence sleeps.
		c.sleep(*nap)
	})
	defer func() {
		w := g.mayWait("coroutine")
		stop()
		w.over("")
	}()
	sum := 0
	for i := 0; i < 3; i++ {
		w := g.mayWait("coroutine")
		v, _ := next()
		w.over("")
		sum += v
		g.sleep(*nap)
	}
	if toTheEnd {
		w := g.waits("coroutine")
		_, ok := next()
		w.over("")
		if ok {
			panic("the sequence has three values")
		}
	}
	result(uint64(sum))
}
