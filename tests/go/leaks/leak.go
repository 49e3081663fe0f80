package main

import (
	"sync"
	"time"
)

func leak() {
	request(missingReceiver)
	for i := 0; i < 3; i++ {
		request(missingSender)
		request(deadSelect)
	}
	for i := 0; i < 2; i++ {
		request(nilChannel)
	}
	request(lostUnlock)
	request(locksInACircle)
	go batches()
	go growing()
	time.Sleep(100 * time.Millisecond)
}

// The caller gives up before the answer comes, and nobody receives it.
func missingReceiver() {
	answer := make(chan int)
	go compute(answer)
	select {
	case <-answer:
	case <-time.After(time.Millisecond):
	}
}

func compute(answer chan<- int) {
	time.Sleep(20 * time.Millisecond)
	answer <- 42
}

// Whoever should send has gone another way.
func missingSender() {
	reply := make(chan string)
	go awaitReply(reply)
}

func awaitReply(reply <-chan string) {
	<-reply
}

// Nothing can happen on either channel.
func deadSelect() {
	events, errors := make(chan int), make(chan error)
	go selectDead(events, errors)
}

func selectDead(events <-chan int, errors <-chan error) {
	select {
	case <-events:
	case <-errors:
	}
}

func nilChannel() {
	var never chan int
	go receiveNil(never)
}

func receiveNil(never <-chan int) {
	<-never
}

type cache struct {
	name  string
	mutex sync.Mutex
	value int
}

// The early return forgets to unlock.
func (c *cache) update(value int) {
	c.mutex.Lock()
	if value < 0 {
		return
	}
	c.value = value
	c.mutex.Unlock()
}

func lostUnlock() {
	c := &cache{name: "prices"}
	c.update(-1)
	go refresh(c)
}

func refresh(c *cache) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.value++
}

type account struct {
	mutex   sync.Mutex
	balance int
}

// Two transfers lock the same accounts in different order.
func locksInACircle() {
	a, b := new(account), new(account)
	go transfer(a, b)
	go transferBack(b, a)
}

func transfer(from, to *account) {
	from.mutex.Lock()
	defer from.mutex.Unlock()
	time.Sleep(20 * time.Millisecond)
	to.mutex.Lock()
	defer to.mutex.Unlock()
	from.balance--
	to.balance++
}

func transferBack(from, to *account) {
	from.mutex.Lock()
	defer from.mutex.Unlock()
	time.Sleep(20 * time.Millisecond)
	to.mutex.Lock()
	defer to.mutex.Unlock()
	from.balance--
	to.balance++
}

// Most batches are done at once; the third forgets a Done.
func batches() {
	for n := 0; ; n++ {
		n := n
		request(func() { batch(n == 2) })
		time.Sleep(10 * time.Millisecond)
	}
}

func batch(forgets bool) {
	var group sync.WaitGroup
	group.Add(2)
	go part(&group, false)
	go part(&group, forgets)
	go finish(&group)
	time.Sleep(20 * time.Millisecond)
}

func part(group *sync.WaitGroup, forgets bool) {
	time.Sleep(40 * time.Millisecond)
	if forgets {
		return
	}
	group.Done()
}

func finish(group *sync.WaitGroup) {
	group.Wait()
}

// Each request leaves one behind.
func growing() {
	for {
		time.Sleep(100 * time.Millisecond)
		request(handler)
	}
}

func handler() {
	events := make(chan int)
	go notify(events)
}

func notify(events chan<- int) {
	events <- 1
}
