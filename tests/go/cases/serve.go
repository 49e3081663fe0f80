package main

import (
	"io"
	"net"
	"net/http"
	"runtime"
	"time"
)

// What the guide (gotrace-daemon/docs/guide) is rehearsed on; the other cases of its pages stand in main.go.
func init() {
	programs["slow"] = slow                            // checkouts wait for a lock whose holder sleeps, and for a slow peer
	programs["hung"] = func() { hung(0) }              // five orders wait for a peer that never answers
	programs["retried"] = func() { hung(time.Second) } // the same, and customers give up after a second and order again
	programs["hot"] = hot                              // goroutines that compute without end
	programs["wasteful"] = wasteful                    // allocates much with a small heap, and reads memory statistics
}

// serve answers what customers ask, some at a time, who wait so long for an answer (0: for ever).
func serve(pattern string, handler http.HandlerFunc, path string, customers int, patience time.Duration) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(pattern, handler)
	go http.Serve(l, mux)
	client := &http.Client{Timeout: patience}
	for i := 0; i < customers; i++ {
		go func() {
			for {
				if r, err := client.Get("http://" + l.Addr().String() + path); err == nil {
					io.Copy(io.Discard, r.Body)
					r.Body.Close()
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
}

// bank answers each byte after so long, or never.
func bank(after time.Duration) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		var open []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if after == 0 {
				open = append(open, c)
				continue
			}
			go func() {
				defer c.Close()
				var b [1]byte
				for {
					if _, err := c.Read(b[:]); err != nil {
						return
					}
					time.Sleep(after)
					c.Write(b[:])
				}
			}()
		}
	}()
	return l.Addr().String()
}

// ask sends the bank a byte and waits for its answer, without a deadline.
//
//go:noinline
func ask(address string) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte{1})
	io.ReadFull(c, make([]byte, 1))
}

// The one that handlers ask, and what they put into.
var (
	peer string
	sold = &store{data: map[string]int{}}
)

func slow() {
	peer = bank(30 * time.Millisecond)
	go refresher(sold)
	serve("/checkout/", checkout, "/checkout/17", 4, 0)
}

func checkout(w http.ResponseWriter, r *http.Request) {
	put(sold)
	ask(peer)
	io.WriteString(w, "sold")
}

// refresher keeps the store locked while it sleeps, half of the time.
//
//go:noinline
func refresher(s *store) {
	for {
		s.mu.Lock()
		refresh()
		s.mu.Unlock()
		time.Sleep(150 * time.Millisecond)
	}
}

//go:noinline
func refresh() { time.Sleep(150 * time.Millisecond) }

func hung(patience time.Duration) {
	peer = bank(0)
	serve("/orders", placeOrder, "/orders", 5, patience)
}

func placeOrder(w http.ResponseWriter, r *http.Request) {
	ask(peer)
	io.WriteString(w, "ordered")
}

func hot() {
	go encode()
	go compress()
	go compress()
}

//go:noinline
func encode() { compute() }

//go:noinline
func compress() { compute() }

func compute() {
	for n := 1; ; n++ {
		if n%7 == 0 {
			n ^= n << 1
		}
	}
}

func wasteful() {
	go collectStats()
	for i := 0; i < 2; i++ {
		go decode()
	}
}

//go:noinline
func decode() {
	keep := make([][]byte, 5000)
	for i := 0; ; i++ {
		keep[i%len(keep)] = make([]byte, 4096)
		if i%len(keep) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

//go:noinline
func collectStats() {
	var m runtime.MemStats
	for {
		runtime.ReadMemStats(&m)
		time.Sleep(200 * time.Millisecond)
	}
}
