//go:build go1.25

package main

import (
	"runtime"
	"sync"
	"time"
)

var cleaning sync.Once

func blockAllCleanups() {
	cleaning.Do(func() {
		begun := make(chan struct{}, 100)
		// The runtime has a goroutine for every four processors, at least one.
		for i := 0; i <= runtime.GOMAXPROCS(0)/4; i++ {
			blockCleanups(begun)
			for n := 0; n < 20 && len(begun) <= i; n++ {
				runtime.GC()
				time.Sleep(time.Millisecond)
			}
		}
	})
}

//go:noinline
func blockCleanups(begun chan struct{}) {
	runtime.AddCleanup(new(object), func(int) {
		begun <- struct{}{}
		<-released
	}, 0)
}
