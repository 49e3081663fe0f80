package main

import (
	"errors"
	"io"
	"net"
	"sync"
)

func init() {
	register("handler that nobody waits for any more", func(s *scene) {
		server := &server{requests: make(chan request)}
		s.blocks(server.serve)
		// The backend was started by the handler and answers too late.
		reply := make(chan response)
		s.blocks(func() { server.requests <- request{reply: reply} })
		s.blocks(func() { <-reply })
		s.hold(func() { close(server.backend()) })
	})
	register("group of errors", func(s *scene) {
		g := newErrorGroup()
		for i := 0; i < 3; i++ {
			g.launch(s, func() error { return errors.New("failed") })
		}
		<-g.errs
		s.hold(func() { <-g.errs; <-g.errs })
	})
	register("flights that share one call", func(s *scene) {
		f := &flights{calls: map[string]*call{}}
		backend := make(chan int)
		for i := 0; i < 3; i++ {
			s.blocks(func() { f.do("key", func() int { return <-backend }) })
		}
		s.hold(func() { backend <- 1 })
	})
	register("pipe without a reader", func(s *scene) {
		r, w := io.Pipe()
		s.blocks(func() { _, _ = w.Write([]byte("hello")) })
		s.hold(func() { r.Close() })
	})
	register("pipe without a writer", func(s *scene) {
		r, w := io.Pipe()
		s.blocks(func() { _, _ = io.ReadAll(r) })
		s.hold(func() { w.Close() })
	})
	register("connection in memory without a peer", func(s *scene) {
		client, service := net.Pipe()
		s.blocks(func() { _, _ = service.Read(make([]byte, 10)) })
		s.hold(func() { client.Close() })
	})
	register("kept in a pool", func(s *scene) {
		item := &pooled{make(chan int)}
		s.blocks(func() { <-item.done })
		pool.Put(item)
		s.hold(func() { close(item.done) })
	})
	register("actor whose mailbox is gone", func(s *scene) {
		a := &actor{mailbox: make(chan func(), 4), quit: make(chan struct{})}
		s.blocks(a.run)
		a.mailbox <- func() {}
		s.hold(func() { close(a.quit) })
	})
	register("cleared from an object that lives", func(s *scene) {
		owner := &struct{ child *actor }{&actor{mailbox: make(chan func()), quit: make(chan struct{})}}
		owners = append(owners, owner)
		child := owner.child
		s.blocks(child.run)
		owner.child = nil
		s.hold(func() { close(child.quit) })
	})
	register("connection that will be read", func(s *scene) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		s.waits(func() { _, _ = listener.Accept() })
		later(func() { listener.Close() })
	})
}

type response struct{ code int }
type request struct{ reply chan response }

type server struct {
	requests chan request
	once     sync.Once
	ready    chan struct{}
}

func (s *server) backend() chan struct{} {
	s.once.Do(func() { s.ready = make(chan struct{}) })
	return s.ready
}

func (s *server) serve() {
	r := <-s.requests
	<-s.backend()
	r.reply <- response{200}
}

type errorGroup struct {
	group sync.WaitGroup
	errs  chan error
}

func newErrorGroup() *errorGroup { return &errorGroup{errs: make(chan error)} }

func (g *errorGroup) launch(s *scene, f func() error) {
	g.group.Add(1)
	s.blocks(func() {
		defer g.group.Done()
		if err := f(); err != nil {
			g.errs <- err
		}
	})
}

type call struct {
	group sync.WaitGroup
	value int
}

type flights struct {
	lock  sync.Mutex
	calls map[string]*call
}

func (f *flights) do(key string, get func() int) int {
	f.lock.Lock()
	if c, ok := f.calls[key]; ok {
		f.lock.Unlock()
		c.group.Wait()
		return c.value
	}
	c := new(call)
	c.group.Add(1)
	f.calls[key] = c
	f.lock.Unlock()
	c.value = get()
	c.group.Done()
	return c.value
}

type pooled struct{ done chan int }

var pool sync.Pool

type actor struct {
	mailbox chan func()
	quit    chan struct{}
}

func (a *actor) run() {
	for {
		select {
		case f := <-a.mailbox:
			f()
		case <-a.quit:
			return
		}
	}
}

var owners []*struct{ child *actor }
