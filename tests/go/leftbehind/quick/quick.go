// Package quick has tests that are over within milliseconds.
package quick

import "sync"

// Pool has workers that end when it is closed.
type Pool struct {
	jobs    chan func()
	workers sync.WaitGroup
}

// NewPool starts the workers.
func NewPool(n int) *Pool {
	p := &Pool{jobs: make(chan func())}
	p.workers.Add(n)
	for i := 0; i < n; i++ {
		go p.work()
	}
	return p
}

func (p *Pool) work() {
	defer p.workers.Done()
	for job := range p.jobs {
		job()
	}
}

// Close ends the workers, and does not wait for them.
func (p *Pool) Close() { close(p.jobs) }
