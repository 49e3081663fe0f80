// Package leftbehind has tests that leave goroutines behind, and tests that do not.
package leftbehind

import (
	"sync"
	"time"
)

// Server runs a worker until it is closed.
type Server struct {
	requests chan int
	done     sync.WaitGroup
}

// Start starts the worker.
func Start() *Server {
	s := &Server{requests: make(chan int)}
	s.done.Add(1)
	go s.serve()
	return s
}

func (s *Server) serve() {
	defer s.done.Done()
	for range s.requests {
	}
}

// Close ends the worker, and waits for it.
func (s *Server) Close() {
	close(s.requests)
	s.done.Wait()
}

// Poll polls for ever.
func Poll() {
	for {
		time.Sleep(50 * time.Millisecond)
	}
}
