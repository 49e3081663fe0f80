package main

import (
	"context"
	"errors"
	"reflect"
	"time"
)

func init() {
	register("missing receiver", func(s *scene) {
		answer := make(chan int)
		s.blocks(func() { answer <- 42 })
		s.hold(func() { <-answer })
	})
	register("missing sender", func(s *scene) {
		reply := make(chan string)
		s.blocks(func() { <-reply })
		s.hold(func() { reply <- "" })
	})
	register("double send", func(s *scene) {
		results := make(chan error)
		s.blocks(func() {
			results <- errors.New("first")
			results <- nil
		})
		<-results
		s.hold(func() { <-results })
	})
	register("early return", earlyReturn)
	register("buffer too small", func(s *scene) {
		errs := make(chan error, 1)
		for i := 0; i < 3; i++ {
			s.blocks(func() { errs <- errors.New("failed") })
		}
		s.hold(func() {
			for i := 0; i < 3; i++ {
				<-errs
			}
		})
	})
	register("first response wins", func(s *scene) {
		responses := make(chan int)
		for i := 0; i < 3; i++ {
			n := i
			s.blocks(func() { responses <- n })
		}
		<-responses
		s.hold(func() { <-responses; <-responses })
	})
	register("select with dead cases", func(s *scene) {
		events, failures := make(chan int), make(chan error)
		s.blocks(func() {
			select {
			case <-events:
			case <-failures:
			}
		})
		s.hold(func() { failures <- nil })
	})
	register("select that sends and receives", func(s *scene) {
		in, out := make(chan int), make(chan int)
		s.blocks(func() {
			select {
			case <-in:
			case out <- 1:
			}
		})
		s.hold(func() { <-out })
	})
	register("select with a nil case", func(s *scene) {
		var never chan int
		stop := make(chan struct{})
		s.blocks(func() {
			select {
			case <-never:
			case <-stop:
			}
		})
		s.hold(func() { close(stop) })
	})
	register("range over a channel that nobody closes", func(s *scene) {
		items := make(chan int)
		s.blocks(func() {
			for range items {
			}
		})
		items <- 1
		s.hold(func() { close(items) })
	})
	register("worker pool without close", func(s *scene) {
		jobs := make(chan func(), 10)
		for i := 0; i < 4; i++ {
			s.blocks(func() {
				for job := range jobs {
					job()
				}
			})
		}
		for i := 0; i < 20; i++ {
			jobs <- func() {}
		}
		s.hold(func() { close(jobs) })
	})
	register("abandoned pipeline", pipeline)
	register("fan-in", fanIn)
	register("fan-out", fanOut)
	register("generator that is left", func(s *scene) {
		numbers := make(chan int)
		stop := make(chan struct{})
		s.blocks(func() {
			for i := 0; ; i++ {
				select {
				case numbers <- i:
				case <-stop:
					return
				}
			}
		})
		for n := range numbers {
			if n == 3 {
				break
			}
		}
		s.hold(func() { close(stop) })
	})
	register("channel of channels", func(s *scene) {
		requests := make(chan chan int, 1)
		s.blocks(func() {
			reply := make(chan int)
			requests <- reply
			<-reply
		})
		s.hold(func() { (<-requests) <- 1 })
	})
	register("channel in a closure in a closure", func(s *scene) {
		done := make(chan struct{})
		await := func() func() { return func() { <-done } }()
		s.blocks(func() { await() })
		s.hold(func() { func() { close(done) }() })
	})
	register("channel in an interface in a struct", func(s *scene) {
		type session struct {
			name string
			done any
		}
		live := &session{"session", make(chan struct{})}
		s.blocks(func() { <-live.done.(chan struct{}) })
		s.hold(func() { close(live.done.(chan struct{})) })
	})
	register("entry deleted from a map", deletedEntry)
	register("subscriber that was dropped", subscriber)
	register("ring of channels", func(s *scene) {
		const n = 5
		var ring [n]chan int
		for i := range ring {
			ring[i] = make(chan int)
		}
		for i := range ring {
			from, to := ring[i], ring[(i+1)%n]
			s.blocks(func() {
				v := <-from
				if v < n {
					to <- v + 1
				}
			})
		}
		s.hold(func() { ring[0] <- 1 })
	})
	register("groups that wait for each other", func(s *scene) {
		left, right := make(chan int), make(chan int)
		for i := 0; i < 3; i++ {
			s.blocks(func() { <-left; right <- 1 })
			s.blocks(func() { <-right; left <- 1 })
		}
		s.hold(func() {
			// Each of three that are released releases one of the others, and so on.
			for i := 0; i < 3; i++ {
				left <- 1
			}
			for i := 0; i < 3; i++ {
				<-left
			}
		})
	})
	register("lost cancel", func(s *scene) {
		ctx, cancel := context.WithCancel(context.Background())
		s.blocks(func() { <-ctx.Done() })
		s.hold(cancel)
	})
	register("chain of contexts", func(s *scene) {
		parent, cancel := context.WithCancel(context.Background())
		ctx := context.WithValue(parent, key(3), "user")
		child, _ := context.WithCancel(ctx) //nolint:govet
		ctx = context.WithValue(child, key(4), "request")
		for i := 0; i < 2; i++ {
			s.blocks(func() { <-ctx.Done() })
		}
		s.hold(cancel)
	})
	register("ticker that was stopped", func(s *scene) {
		ticker := time.NewTicker(time.Hour)
		s.blocks(func() { <-ticker.C })
		ticker.Stop()
		s.hold(func() { ticker.Reset(time.Millisecond) })
	})
	register("timer that was stopped", func(s *scene) {
		timer := time.NewTimer(time.Hour)
		s.blocks(func() {
			select {
			case <-timer.C:
			case <-make(chan int):
			}
		})
		timer.Stop()
		s.hold(func() { timer.Reset(time.Millisecond) })
	})
	register("token that is never given back", func(s *scene) {
		tokens := make(chan struct{}, 2)
		tokens <- struct{}{}
		tokens <- struct{}{}
		s.blocks(func() { tokens <- struct{}{} })
		s.hold(func() { <-tokens })
	})
	register("bucket that nobody fills", func(s *scene) {
		bucket := make(chan time.Time, 1)
		for i := 0; i < 3; i++ {
			s.blocks(func() { <-bucket })
		}
		s.hold(func() { close(bucket) })
	})
	register("nil receive", func(s *scene) {
		var c chan int
		if s.healthy {
			c = make(chan int)
		}
		s.blocks(func() { <-c })
		s.hold(func() { close(c) })
	})
	register("nil send", func(s *scene) {
		var c chan int
		if s.healthy {
			c = make(chan int)
		}
		s.blocks(func() { c <- 1 })
		s.hold(func() { <-c })
	})
	register("empty select", func(s *scene) {
		c := make(chan int)
		if s.healthy {
			s.blocks(func() { <-c })
		} else {
			s.blocks(func() { select {} })
		}
		s.hold(func() { close(c) })
	})
	register("reflected receive", func(s *scene) {
		c := reflect.MakeChan(reflect.TypeOf((chan int)(nil)), 0)
		s.blocks(func() { c.Recv() })
		s.hold(func() { c.Send(reflect.ValueOf(1)) })
	})
	register("reflected select", func(s *scene) {
		var cases []reflect.SelectCase
		for i := 0; i < 20; i++ {
			c := reflect.MakeChan(reflect.TypeOf((chan string)(nil)), 0)
			cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: c})
		}
		s.blocks(func() { reflect.Select(cases) })
		s.hold(func() { cases[13].Chan.Close() })
	})
	register("generic future", func(s *scene) {
		f := newFuture[map[string]int]()
		s.blocks(func() { f.get() })
		s.hold(func() { f.set(nil) })
	})
	register("deep in a recursion", func(s *scene) {
		c := make(chan int)
		s.blocks(func() { recurse(2000, c) })
		s.hold(func() { close(c) })
	})
	register("in a deferred call of a panic", func(s *scene) {
		c := make(chan int)
		s.blocks(func() {
			defer func() { _ = recover() }()
			defer func() { <-c }()
			panic("expected")
		})
		s.hold(func() { close(c) })
	})
	register("large elements", func(s *scene) {
		c := make(chan [1000]*int, 2)
		c <- [1000]*int{}
		c <- [1000]*int{7: new(int)}
		s.blocks(func() { c <- [1000]*int{} })
		s.hold(func() { <-c })
	})
	register("payload", func(s *scene) {
		c := make(chan int)
		for i := 0; i < 8; i++ {
			hoard := make([]byte, 1<<20)
			s.blocks(func() {
				<-c
				hoard[0]++
			})
		}
		s.hold(func() { close(c) })
	})
	register("named only where it is not used any more", deadSlot)
	register("timeout that will come", func(s *scene) {
		s.waits(func() {
			select {
			case <-make(chan int):
			case <-time.After(time.Hour):
			case <-released:
			}
		})
	})
	register("deadline that will come", func(s *scene) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		s.waits(func() { <-ctx.Done() })
		later(cancel)
	})
	register("timer that will fire", func(s *scene) {
		timer := time.NewTimer(2 * time.Hour)
		s.waits(func() {
			select {
			case <-timer.C:
			case <-released:
			}
		})
	})
}

func earlyReturn(s *scene) {
	find := func() error {
		found := make(chan string)
		s.blocks(func() { found <- "it" })
		s.hold(func() { <-found })
		if len(s.name) > 0 {
			return errors.New("invalid")
		}
		<-found
		return nil
	}
	_ = find()
}

func pipeline(s *scene) {
	stop := make(chan struct{})
	numbers, squares, texts := make(chan int), make(chan int), make(chan int)
	stage := func(in <-chan int, out chan<- int) func() {
		return func() {
			for {
				select {
				case n := <-in:
					select {
					case out <- n * n:
					case <-stop:
						return
					}
				case <-stop:
					return
				}
			}
		}
	}
	s.blocks(func() {
		for i := 0; ; i++ {
			select {
			case numbers <- i:
			case <-stop:
				return
			}
		}
	})
	s.blocks(stage(numbers, squares))
	s.blocks(stage(squares, texts))
	<-texts
	s.hold(func() { close(stop) })
}

func fanIn(s *scene) {
	out := make(chan int)
	for i := 0; i < 4; i++ {
		n := i
		s.blocks(func() {
			for range [2]int{} {
				out <- n
			}
		})
	}
	<-out
	s.hold(func() {
		for i := 0; i < 7; i++ {
			<-out
		}
	})
}

func fanOut(s *scene) {
	work := []chan int{make(chan int), make(chan int), make(chan int)}
	for _, c := range work[1:] {
		in := c
		s.blocks(func() {
			for range in {
			}
		})
	}
	// The first worker has ended.
	sent := make(chan struct{})
	s.blocks(func() {
		for i := 0; i < 6; i++ {
			work[(i+2)%3] <- i
		}
		close(sent)
	})
	s.hold(func() {
		<-work[0]
		<-work[0]
		<-sent
		close(work[1])
		close(work[2])
	})
}

var sessions = map[string]chan int{}

func deletedEntry(s *scene) {
	c := make(chan int)
	sessions[s.name] = c
	s.blocks(func() { <-c })
	delete(sessions, s.name)
	s.hold(func() { close(c) })
}

type topic struct{ subscribers []chan string }

var news topic

func subscriber(s *scene) {
	c := make(chan string, 1)
	news.subscribers = append(news.subscribers, c)
	s.blocks(func() {
		for range c {
		}
	})
	for _, to := range news.subscribers {
		to <- "hello"
	}
	// The slot is behind the slice's end, and must not refer to it.
	news.subscribers[len(news.subscribers)-1] = nil
	news.subscribers = news.subscribers[:len(news.subscribers)-1]
	s.hold(func() { close(c) })
}

type future[T any] struct {
	done  chan struct{}
	value T
}

func newFuture[T any]() *future[T] { return &future[T]{done: make(chan struct{})} }

func (f *future[T]) get() T {
	<-f.done
	return f.value
}

func (f *future[T]) set(v T) {
	f.value = v
	close(f.done)
}

//go:noinline
func recurse(n int, c chan int) int {
	if n == 0 {
		return <-c
	}
	return recurse(n-1, c) + 1
}

// A goroutine that runs still has the address on its stack, but does not use it any more. Only who knows which
// words of a stack are used can tell; the healthy twin does use it.
func deadSlot(s *scene) {
	c := make(chan int)
	s.blocks(func() { <-c })
	begun := make(chan struct{})
	healthy := s.healthy
	go func() {
		if healthy {
			liveSlot(begun, c)
		} else {
			staleSlot(begun, c)
		}
	}()
	<-begun
}

//go:noinline
func staleSlot(begun chan struct{}, c chan int) {
	touch(c)
	close(begun)
	<-released
}

//go:noinline
func liveSlot(begun chan struct{}, c chan int) {
	touch(c)
	close(begun)
	<-released
	close(c)
}

//go:noinline
func touch(c chan int) int { return cap(c) }
