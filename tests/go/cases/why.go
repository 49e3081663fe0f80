package main

import (
	"sync"
	"time"
)

// What `gotrace why` is asked about.
func init() {
	programs["signal"] = signal   // a timer far away signals a condition
	programs["global"] = inGlobal // a goroutine waits for a channel in a variable
	programs["moving"] = moving   // a goroutine waits for a WaitGroup again and again, some milliseconds each
}

type latch struct {
	cond *sync.Cond
	pad  [6]int
}

func signal() {
	l := &latch{cond: sync.NewCond(new(sync.Mutex))}
	go waitFor(l.cond)
	time.AfterFunc(time.Hour, l.cond.Signal)
}

//go:noinline
func waitFor(c *sync.Cond) {
	c.L.Lock()
	c.Wait()
	c.L.Unlock()
}

type database struct {
	name string
	open chan int
}

var db database

func inGlobal() {
	db = database{"orders", make(chan int)}
	go connect(db.open)
}

//go:noinline
func connect(c chan int) { <-c }

func moving() {
	keep = append(keep, new(sync.WaitGroup))
	go turn(keep[0].(*sync.WaitGroup))
}

//go:noinline
func turn(group *sync.WaitGroup) {
	for {
		group.Add(1)
		time.AfterFunc(5*time.Millisecond, group.Done)
		group.Wait()
	}
}
