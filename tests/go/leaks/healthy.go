package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// What keeps things alive here is kept where programs keep it: in structures on the heap.
var services []interface{}

func healthy() {
	pools()
	go httpWithKeepAlive()
	go tickerLoop()
	go signalLoop()
	go groups()
	conditions()
	request(startService)
	contexts()
	go slowConsumer()
	go longButNotForEver()
	connections()
	go idleGenerator()()
	time.Sleep(300 * time.Millisecond)
}

type pool struct {
	jobs chan func()
	done sync.WaitGroup
}

func newPool(workers int) *pool {
	p := &pool{jobs: make(chan func())}
	for i := 0; i < workers; i++ {
		p.done.Add(1)
		go p.work()
	}
	return p
}

func (p *pool) work() {
	defer p.done.Done()
	for job := range p.jobs {
		job()
	}
}

// One pool with a little to do, one with nothing, one that a goroutine started that has ended.
func pools() {
	busy := newPool(8)
	go func() {
		for {
			busy.jobs <- func() {}
			time.Sleep(200 * time.Millisecond)
		}
	}()
	idle := newPool(4)
	services = append(services, idle)
	go func() {
		// As main does that waits for its workers.
		idle.done.Wait()
	}()
	request(func() { services = append(services, newPool(4)) })
}

func httpWithKeepAlive() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello")
	})}
	go server.Serve(listener)
	get := func(client *http.Client) {
		response, err := client.Get("http://" + listener.Addr().String())
		if err != nil {
			return
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	// One more client each half second, whose connection stays open.
	for n := 0; ; n++ {
		if n < 40 {
			get(&http.Client{Transport: &http.Transport{}})
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func tickerLoop() {
	slow := time.NewTicker(time.Hour)
	fast := time.NewTicker(100 * time.Millisecond)
	go func() {
		for range slow.C {
		}
	}()
	for range fast.C {
	}
}

func signalLoop() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	for range signals {
	}
}

// Groups of workers that finish, again and again.
func groups() {
	for {
		var group sync.WaitGroup
		results := make(chan int, 4)
		for i := 0; i < 4; i++ {
			group.Add(1)
			go func() {
				defer group.Done()
				time.Sleep(20 * time.Millisecond)
				results <- 1
			}()
		}
		go func() {
			group.Wait()
			close(results)
		}()
		for range results {
		}
	}
}

type queue struct {
	mutex sync.Mutex
	ready *sync.Cond
	items int
}

func conditions() {
	for _, busy := range []bool{true, false} {
		q := &queue{}
		q.ready = sync.NewCond(&q.mutex)
		services = append(services, q)
		for i := 0; i < 3; i++ {
			go q.take()
		}
		if busy {
			go func() {
				for {
					q.mutex.Lock()
					q.items += 2
					q.mutex.Unlock()
					q.ready.Broadcast()
					time.Sleep(50 * time.Millisecond)
				}
			}()
		}
	}
}

func (q *queue) take() {
	for {
		q.mutex.Lock()
		for q.items == 0 {
			q.ready.Wait()
		}
		q.items--
		q.mutex.Unlock()
	}
}

type service struct {
	requests chan int
	stop     chan struct{}
	flush    chan error
}

// A framework's start hook: the goroutine that starts the service ends.
func startService() {
	s := &service{make(chan int), make(chan struct{}), make(chan error)}
	services = append(services, map[string]*service{"service": s})
	go s.run()
	go s.watch()
	go s.flusher()
}

func (s *service) run() {
	for {
		select {
		case <-s.requests:
		case <-s.stop:
			return
		}
	}
}

func (s *service) watch() {
	<-s.stop
}

func (s *service) flusher() {
	for range s.flush {
	}
}

func contexts() {
	ctx, cancel := context.WithCancel(context.Background())
	services = append(services, cancel)
	go func() { <-ctx.Done() }()
	timed, cancelTimed := context.WithTimeout(ctx, time.Hour)
	services = append(services, cancelTimed)
	go func() {
		select {
		case <-timed.Done():
		case <-time.After(time.Hour):
		}
	}()
	time.AfterFunc(time.Hour, func() {})
}

// The producer waits most of the time, and moves on each second.
func slowConsumer() {
	lines := make(chan int)
	go func() {
		for n := 0; ; n++ {
			lines <- n
		}
	}()
	for range lines {
		time.Sleep(time.Second)
	}
}

// A lock that is held for long, and others that wait for it meanwhile.
func longButNotForEver() {
	var mutex sync.RWMutex
	for i := 0; i < 3; i++ {
		go func() {
			for {
				mutex.RLock()
				mutex.RUnlock()
				time.Sleep(time.Millisecond)
			}
		}()
	}
	for {
		mutex.Lock()
		time.Sleep(1500 * time.Millisecond)
		mutex.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

// More and more connections, each with a writer of its own.
func connections() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				out := make(chan []byte)
				closed := make(chan error, 1)
				go func() {
					for {
						select {
						case message := <-out:
							connection.Write(message)
						case <-closed:
							return
						}
					}
				}()
				buffer := make([]byte, 16)
				_, err := connection.Read(buffer)
				if err == nil {
					err = errors.New("who is there?")
				}
				closed <- err
			}()
		}
	}()
	go func() {
		var open []net.Conn
		for n := 0; n < 100; n++ {
			connection, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				return
			}
			open = append(open, connection)
			time.Sleep(300 * time.Millisecond)
		}
		select {}
	}()
}

// Numbers for whoever wants one, which is nobody for now.
func idleGenerator() func() {
	numbers := make(chan int)
	go func() {
		for n := 0; ; n++ {
			numbers <- n
		}
	}()
	return func() {
		for {
			time.Sleep(time.Minute)
			<-numbers
		}
	}
}
