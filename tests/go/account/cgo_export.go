//go:build cgo

package main

import "C"

//export calledFromC
func calledFromC(v C.longlong) {
	g := birth{spawnNS: now()}.beginAs("cthread", "runtime.goexit")
	g.FreeWaits = true
	defer g.end()
	done := make(chan struct{})
	b := g.forks()
	go func() {
		h := b.begin()
		defer h.end()
		h.sleep(*nap)
		result(uint64(v))
		close(done)
	}()
	w := g.waits("chan receive")
	<-done
	w.over("")
}
