// A program with servers of many routers, which asks itself everything, and knows what it asked.
//
// On "hold" it asks what has a route once, and says which of it its handlers hold until "release".
//
// On "run N" it asks each question N times and more, of several clients at once, and says what was asked in one line: how
// often which method was answered with which status by which route.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"time"
)

const clients = 6

// What is asked, and what is to come of it.
type question struct {
	method, path string
	// The route as its router has it; empty where none is to be told.
	route  string
	status int
}

// A server, and what it is asked.
type server struct {
	handler http.Handler
	// How it is served; net/http, HTTP/1.1, where nil. Gives the address and a client.
	serve     func(http.Handler) (string, *http.Client)
	protocol  string
	questions []question
	// The router is on another goroutine than the server's.
	elsewhere bool
}

var servers []server

func add(s server) { servers = append(servers, s) }

// Whether goroutines know who started them (Go 1.21), so that what is served on another one is.
var parents = minor() >= 21

func minor() (minor int) {
	_, err := fmt.Sscanf(runtime.Version(), "go1.%d", &minor)
	must(err)
	return minor
}

// Whether a ServeMux notes its pattern in the request.
var patterns = func() bool {
	r, err := http.NewRequest("GET", "/x", nil)
	must(err)
	mux := http.NewServeMux()
	mux.HandleFunc("/x", func(http.ResponseWriter, *http.Request) {})
	mux.ServeHTTP(nil, r)
	pat := reflect.ValueOf(r).Elem().FieldByName("pat")
	return pat.IsValid() && !pat.IsNil()
}()

// A route that only a ServeMux with patterns tells.
func pattern(route string) string {
	if patterns {
		return route
	}
	return ""
}

// Of routers that run on another goroutine than the server's.
func elsewhere(questions []question) []question {
	var all []question
	for _, q := range questions {
		if !parents {
			q.route += untold
		}
		all = append(all, q)
	}
	return all
}

// Behind a route that is not to be told.
const untold = "\x00"

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Answers with what the client asks for, where the router says the route that it is to say.
func answer(w http.ResponseWriter, r *http.Request, route string) {
	if want := r.Header.Get("Route"); want != route {
		panic(fmt.Sprintf("%s %s is routed by %q, not %q", r.Method, r.URL.Path, route, want))
	}
	if r.Header.Get("Hold") != "" {
		entered <- struct{}{}
		<-release
	}
	runtime.Gosched()
	w.WriteHeader(status(r))
}

// Handlers that hold their request, and what lets them go.
var entered, release = make(chan struct{}), make(chan struct{})

func status(r *http.Request) int {
	var status int
	fmt.Sscan(r.Header.Get("Status"), &status)
	return status
}

type key struct{}

// A middleware around everything: it copies the request, and takes its time when a router is done with it, so that others
// have its context meanwhile.
func around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, 1)))
		time.Sleep(300 * time.Microsecond)
	})
}

// A request of the program's own to a router, which no client has asked for.
func inside(h http.Handler, path, route string) {
	r, err := http.NewRequest("GET", path, nil)
	must(err)
	r.Header.Set("Route", route)
	r.Header.Set("Status", "200")
	h.ServeHTTP(discard{http.Header{}}, r)
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

func plain(h http.Handler) (string, *http.Client) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go http.Serve(l, h)
	return "http://" + l.Addr().String(), &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
}

// How often something came of something.
type count struct {
	Protocol string  `json:"protocol"`
	Method   string  `json:"method"`
	Route    *string `json:"route"`
	Status   int     `json:"status"`
	Count    int     `json:"count"`
}

type ask struct {
	url    string
	client *http.Client
	// Of its server.
	protocol string
	question
}

func (a ask) run(hold string) {
	r, err := http.NewRequest(a.method, a.url+a.path, nil)
	must(err)
	r.Header.Set("Route", strings.TrimSuffix(a.route, untold))
	r.Header.Set("Status", fmt.Sprint(a.status))
	r.Header.Set("Hold", hold)
	response, err := a.client.Do(r)
	must(err)
	_, err = io.Copy(io.Discard, response.Body)
	must(err)
	response.Body.Close()
	if response.StatusCode != a.status {
		panic(fmt.Sprintf("%s %s: %s", a.method, a.path, response.Status))
	}
}

func main() {
	run := make([]func(int) []count, len(servers))
	var holds []ask
	for n := range servers {
		var of []ask
		run[n], of = servers[n].start()
		holds = append(holds, of...)
	}
	fmt.Println(`{"ready":true}`)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "hold" {
			hold(holds)
			continue
		}
		if in.Text() == "release" {
			close(release)
			continue
		}
		var times int
		_, err := fmt.Sscanf(in.Text(), "run %d", &times)
		must(err)
		var all []count
		for n := range run {
			all = append(all, run[n](times)...)
		}
		line, err := json.Marshal(map[string]interface{}{"counts": all})
		must(err)
		fmt.Println(string(line))
	}
}

// Asks everything once, and says what is held then.
func hold(asks []ask) {
	var all []count
	for _, a := range asks {
		done := make(chan struct{})
		go func(a ask) {
			defer close(done)
			a.run("1")
		}(a)
		select {
		case <-entered:
			route := a.route
			all = append(all, count{a.protocol, a.method, &route, 0, 1})
		case <-done:
		}
	}
	line, err := json.Marshal(map[string]interface{}{"held": all})
	must(err)
	fmt.Println(string(line))
}

// Begins to serve; asks everything so often, of some things once or twice more. What may be held of it.
func (s server) start() (func(int) []count, []ask) {
	if s.serve == nil {
		s.serve, s.protocol = plain, "http/1.1"
	}
	url, client := s.serve(around(s.handler))
	var holds []ask
	for _, q := range s.questions {
		if q.route != "" && !s.elsewhere {
			holds = append(holds, ask{url, client, s.protocol, q})
		}
	}
	return func(times int) (counts []count) {
		asks := make(chan ask)
		var done sync.WaitGroup
		for n := 0; n < clients; n++ {
			done.Add(1)
			go func() {
				defer done.Done()
				for a := range asks {
					a.run("")
				}
			}()
		}
		for round := 0; round < times+2; round++ {
			for n, q := range s.questions {
				if round < times+n%3 {
					asks <- ask{url, client, s.protocol, q}
				}
			}
		}
		close(asks)
		done.Wait()
		for n, q := range s.questions {
			c := count{s.protocol, q.method, nil, q.status, times + n%3}
			if q.route != "" && !strings.HasSuffix(q.route, untold) {
				route := q.route
				c.Route = &route
			}
			counts = append(counts, c)
		}
		return counts
	}, holds
}
