package main

import (
	"sync"
)

func init() {
	register("forgotten unlock", func(s *scene) {
		mutex := new(mutex)
		mutex.Lock()
		for i := 0; i < 3; i++ {
			s.blocks(func() {
				mutex.Lock()
				defer mutex.Unlock()
			})
		}
		s.hold(mutex.Unlock)
	})
	register("double lock", func(s *scene) {
		mutex := new(mutex)
		s.blocks(func() {
			mutex.Lock()
			mutex.Lock()
		})
		s.hold(mutex.Unlock)
	})
	register("locks in another order", func(s *scene) {
		a, b := new(mutex), new(mutex)
		var both sync.WaitGroup
		both.Add(2)
		s.blocks(func() {
			a.Lock()
			both.Done()
			both.Wait()
			b.Lock()
		})
		s.blocks(func() {
			b.Lock()
			both.Done()
			both.Wait()
			a.Lock()
			b.Unlock()
		})
		s.hold(a.Unlock)
	})
	register("mutex embedded in a struct", func(s *scene) {
		type counter struct {
			hits [10]int
			sync.Mutex
			names map[string]int
		}
		c := &counter{names: map[string]int{}}
		c.Lock()
		s.blocks(func() {
			c.Lock()
			defer c.Unlock()
			c.names["a"]++
		})
		s.hold(c.Unlock)
	})
	register("method of a locked struct", func(s *scene) {
		c := &cache{values: map[string]int{}}
		s.blocks(func() { c.update("a") })
		s.hold(c.lock.Unlock)
	})
	register("writer behind a reader", func(s *scene) {
		lock := new(sync.RWMutex)
		lock.RLock()
		s.blocks(func() {
			lock.Lock()
			defer lock.Unlock()
		})
		s.hold(lock.RUnlock)
	})
	register("readers behind a starved writer", func(s *scene) {
		lock := new(sync.RWMutex)
		lock.RLock()
		s.blocks(func() {
			lock.Lock()
			defer lock.Unlock()
		})
		for lock.TryRLock() {
			// The writer is not there yet.
			lock.RUnlock()
		}
		for i := 0; i < 2; i++ {
			s.blocks(func() {
				lock.RLock()
				defer lock.RUnlock()
			})
		}
		s.hold(lock.RUnlock)
	})
	register("readers behind a writer that forgot", func(s *scene) {
		lock := new(sync.RWMutex)
		lock.Lock()
		for i := 0; i < 2; i++ {
			s.blocks(func() {
				lock.RLock()
				defer lock.RUnlock()
			})
		}
		s.hold(lock.Unlock)
	})
	register("writer behind a writer", func(s *scene) {
		lock := new(sync.RWMutex)
		lock.Lock()
		s.blocks(func() {
			lock.Lock()
			defer lock.Unlock()
		})
		s.hold(lock.Unlock)
	})
	register("forgotten done", func(s *scene) {
		group := new(sync.WaitGroup)
		group.Add(2)
		s.blocks(group.Wait)
		group.Done()
		s.hold(group.Done)
	})
	register("group with too many added", func(s *scene) {
		group := new(sync.WaitGroup)
		group.Add(4)
		for i := 0; i < 3; i++ {
			go group.Done()
		}
		for i := 0; i < 2; i++ {
			s.blocks(group.Wait)
		}
		s.hold(group.Done)
	})
	register("group that waits for one that leaks", func(s *scene) {
		group := new(sync.WaitGroup)
		results := make(chan int)
		group.Add(1)
		s.blocks(func() {
			defer group.Done()
			results <- 1
		})
		s.blocks(func() {
			group.Wait()
			close(results)
		})
		s.hold(func() { <-results })
	})
	register("condition without signal", func(s *scene) {
		cond := sync.NewCond(new(sync.Mutex))
		s.blocks(func() {
			cond.L.Lock()
			cond.Wait()
			cond.L.Unlock()
		})
		s.hold(cond.Broadcast)
	})
	register("signal where broadcast was needed", func(s *scene) {
		cond := sync.NewCond(new(sync.Mutex))
		for i := 0; i < 3; i++ {
			s.blocks(func() {
				cond.L.Lock()
				cond.Wait()
				cond.L.Unlock()
			})
		}
		s.hold(cond.Broadcast)
	})
	register("condition in a struct", func(s *scene) {
		q := &blockingQueue{}
		q.changed.L = &q.lock
		s.blocks(func() { q.take() })
		s.hold(func() { q.put(1) })
	})
	register("barrier that one never reaches", func(s *scene) {
		b := &barrier{left: 3}
		b.open.L = &b.lock
		s.blocks(b.await)
		s.blocks(b.await)
		s.hold(b.await)
	})
	register("once that does not return", func(s *scene) {
		once := new(sync.Once)
		connected := make(chan struct{})
		for i := 0; i < 3; i++ {
			s.blocks(func() { once.Do(func() { <-connected }) })
		}
		s.hold(func() { close(connected) })
	})
	register("once in itself", func(s *scene) {
		if s.healthy {
			return
		}
		once := new(sync.Once)
		s.blocks(func() {
			once.Do(func() { once.Do(func() {}) })
		})
	})
	register("lock held over a channel operation", func(s *scene) {
		lock := new(mutex)
		items := make(chan int)
		s.blocks(func() {
			lock.Lock()
			defer lock.Unlock()
			items <- 1
		})
		for lock.TryLock() {
			lock.Unlock()
		}
		s.blocks(func() {
			lock.Lock()
			defer lock.Unlock()
			<-items
		})
		s.hold(func() { <-items; items <- 1 })
	})
}

// The runtime puts several objects of less than 16 bytes without pointers into one, and what refers to one of them
// holds all.
type mutex struct {
	sync.Mutex
	_ [2]uint64
}

type cache struct {
	name   string
	lock   sync.Mutex
	values map[string]int
}

func (c *cache) update(name string) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.values[name] = c.size()
}

// It locks, too.
func (c *cache) size() int {
	c.lock.Lock()
	return len(c.values)
}

type blockingQueue struct {
	lock    sync.Mutex
	changed sync.Cond
	values  []int
}

func (q *blockingQueue) take() int {
	q.lock.Lock()
	defer q.lock.Unlock()
	for len(q.values) == 0 {
		q.changed.Wait()
	}
	v := q.values[0]
	q.values = q.values[1:]
	return v
}

func (q *blockingQueue) put(v int) {
	q.lock.Lock()
	defer q.lock.Unlock()
	q.values = append(q.values, v)
	q.changed.Signal()
}

type barrier struct {
	lock sync.Mutex
	open sync.Cond
	left int
}

func (b *barrier) await() {
	b.lock.Lock()
	defer b.lock.Unlock()
	b.left--
	if b.left == 0 {
		b.open.Broadcast()
	}
	for b.left > 0 {
		b.open.Wait()
	}
}
