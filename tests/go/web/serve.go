package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// serve answers requests on the loopback interface, each after so much work; counts the port.
func serve(work time.Duration) (sample, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return sample{}, err
	}
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if work > 0 {
			compute(work)
		}
	})
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	go http.Serve(listener, mux)
	return sample{Count: listener.Addr().(*net.TCPAddr).Port}, nil
}

// perMicrosecond is how many rounds of work a microsecond takes; it is found out once, as what others take from the
// processor must not make work less.
func perMicrosecond() float64 {
	calibrating.Do(func() { rate = calibrate() })
	return rate
}

var (
	calibrating sync.Once
	rate        float64
)

func calibrate() float64 {
	best := 0.0
	for i := 0; i < 20; i++ {
		const rounds = 1 << 16
		start := time.Now()
		spin(rounds)
		if rate := rounds / (float64(time.Since(start)) / 1e3); rate > best {
			best = rate
		}
	}
	return best
}

func compute(work time.Duration) { spin(int(perMicrosecond() * float64(work) / 1e3)) }

var sink atomic.Uint64

//go:noinline
func spin(rounds int) {
	x := uint64(rounds) | 1
	for i := 0; i < rounds; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	sink.Store(x)
}

// load asks for so long, over so many connections; counts the answers.
func load(port, connections int, d time.Duration) (sample, error) {
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	transport := &http.Transport{MaxIdleConnsPerHost: connections}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var (
		answers atomic.Int64
		failed  atomic.Value
		done    sync.WaitGroup
	)
	start, cpu := time.Now(), cpuTime()
	for i := 0; i < connections; i++ {
		done.Add(1)
		go func() {
			defer done.Done()
			for time.Since(start) < d {
				answer, err := client.Get(url)
				if err == nil {
					_, err = io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
				}
				if err != nil {
					failed.Store(err)
					return
				}
				answers.Add(1)
			}
		}()
	}
	done.Wait()
	used := sample{Count: int(answers.Load()), CPUNS: float64(cpuTime() - cpu), WallNS: float64(time.Since(start))}
	if err, ok := failed.Load().(error); ok {
		return used, err
	}
	return used, nil
}
