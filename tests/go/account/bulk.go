package main

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Runs with many goroutines: their account is counts and the checksum only.

// churn starts exactly n goroutines, rate a second, and waits until all are gone.
func churn(n int, rate float64, done figures) {
	var wg sync.WaitGroup
	start := time.Now()
	for i := 0; i < n; {
		due := n
		if rate > 0 {
			due = int(time.Since(start).Seconds()*rate) + 1
			if due > n {
				due = n
			}
		}
		for ; i < due; i++ {
			wg.Add(1)
			go churnWorker(&wg, uint64(i))
		}
		if i < n {
			pause := time.Millisecond
			if rate > 0 && rate < 1000 {
				pause = time.Duration(float64(time.Second) / rate / 4)
			}
			time.Sleep(pause)
		}
	}
	wg.Wait()
	seconds := time.Since(start).Seconds()
	done["born"] = n
	done["achieved_rate"] = float64(n) / seconds
}

func churnWorker(wg *sync.WaitGroup, i uint64) {
	defer wg.Done()
	result(i)
}

// pingpong measures channel round trips between two goroutines.
func pingpong(n int, done figures) {
	there, back := make(chan uint64), make(chan uint64)
	go pong(there, back)
	for i := 0; i < n/10; i++ {
		there <- 0
		<-back
	}
	var sum uint64
	start := time.Now()
	for i := 0; i < n; i++ {
		there <- uint64(i)
		sum += <-back
	}
	done["ns_per_round_trip"] = float64(time.Since(start).Nanoseconds()) / float64(n)
	close(there)
	result(sum)
}

func pong(there, back chan uint64) {
	for v := range there {
		back <- v + 1
	}
}

// births measures a goroutine's birth and death: one after the other, each waited for by yielding,
// so that no park and no wake is in the figure.
func births(n int, done figures) {
	var ended atomic.Int64
	start := time.Now()
	for i := 0; i < n; i++ {
		go mayfly(&ended)
		for ended.Load() <= int64(i) {
			runtime.Gosched()
		}
	}
	done["ns_per_birth_death"] = float64(time.Since(start).Nanoseconds()) / float64(n)
	result(uint64(ended.Load()))
}

func mayfly(ended *atomic.Int64) { ended.Add(1) }

// park leaves n goroutines waiting on a channel until the program ends.
func park(n int, done figures) {
	never := make(chan struct{})
	var ready sync.WaitGroup
	ready.Add(n)
	for i := 0; i < n; i++ {
		go parked(&ready, never)
	}
	ready.Wait()
	done["parked"] = n
}

func parked(ready *sync.WaitGroup, never chan struct{}) {
	ready.Done()
	<-never
}

// storm starts n goroutines that panic three calls deep, recover, panic again, and recover at the
// top; every fourth one leaves by runtime.Goexit in between.
func storm(n int, done figures) {
	var wg sync.WaitGroup
	for i := 0; i < n; i++ {
		wg.Add(1)
		go stormy(&wg, i)
		if i%256 == 255 {
			time.Sleep(time.Millisecond)
		}
	}
	wg.Wait()
	done["born"] = n
}

func stormy(wg *sync.WaitGroup, i int) {
	defer wg.Done()
	defer func() {
		if v := recover(); v != nil {
			result(uint64(v.(int)))
		}
	}()
	func() {
		defer func() {
			v := recover().(int)
			result(uint64(v) + 1)
			if i%4 == 0 {
				runtime.Goexit()
			}
		}()
		deeper(i, 3)
	}()
	panic(i * 3)
}

func deeper(i, depth int) {
	if depth == 0 {
		panic(i)
	}
	deeper(i, depth-1)
}
