//go:build go1.24

package main

import (
	"runtime"
	"sync"
	"time"
)

// The cleanup's argument holds it, and the runtime holds the argument.
func byCleanup(wake func()) {
	o := new(object)
	runtime.AddCleanup(o, func(f *func()) { (*f)() }, &wake)
	objects = append(objects, o)
	n := len(objects) - 1
	later(func() { objects[n] = nil })
}

var cleaning sync.Once

// Nothing but the runtime's queue holds it: as many cleanups as are run at once wait until all are let go.
func byQueuedCleanup(wake func()) {
	cleaning.Do(func() {
		begun := make(chan struct{}, 100)
		// From Go 1.25 on the runtime has a goroutine for every four processors, at least one.
		for i := 0; i <= runtime.GOMAXPROCS(0)/4; i++ {
			blockCleanups(begun)
			for n := 0; n < 20 && len(begun) <= i; n++ {
				runtime.GC()
				time.Sleep(time.Millisecond)
			}
		}
	})
	cleanUp(wake)
}

//go:noinline
func blockCleanups(begun chan struct{}) {
	runtime.AddCleanup(new(object), func(int) {
		begun <- struct{}{}
		<-released
	}, 0)
}

//go:noinline
func cleanUp(wake func()) {
	runtime.AddCleanup(new(object), func(f *func()) { (*f)() }, &wake)
}
