package main

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"
)

// How many streams there are at once on one connection.
const streams = 100

// Nodes that the collector marks while requests of kind assist allocate.
const nodes = 300000

// What asks, over HTTP/1.1 and over HTTP/2: one connection each.
type client struct {
	plain, http2       *http.Client
	plainURL, http2URL string
	// The request that did not end has ended.
	released chan struct{}
}

type copiedKey struct{}

// Gives the request itself to some, and a copy of it to others.
func copying(mux http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if kinds[of(r).Kind].copied {
			r = r.WithContext(context.WithValue(r.Context(), copiedKey{}, 1))
		}
		mux.ServeHTTP(w, r)
	})
}

func serve() *client {
	mux, things := http.NewServeMux(), http.NewServeMux()
	for _, k := range kinds {
		k := k
		at := k.plain
		if patterns {
			at = k.pattern
		}
		if at == "" {
			continue
		}
		var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { k.handler(of(r), w, r) })
		switch k.name {
		case "timeout":
			handler = http.TimeoutHandler(handler, wait, "late")
		case "stripped":
			things.Handle(at, handler)
			continue
		}
		mux.Handle(at, handler)
	}
	mux.Handle("/api/", http.StripPrefix("/api", things))
	start := func(http2 bool) *httptest.Server {
		server := httptest.NewUnstartedServer(accounted(copying(mux)))
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.EnableHTTP2 = http2
		if http2 {
			server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
			server.StartTLS()
		} else {
			server.Start()
		}
		return server
	}
	plain, secure := start(false), start(true)
	return &client{plain.Client(), secure.Client(), plain.URL, secure.URL, make(chan struct{})}
}

// Makes requests of a kind.
func (c *client) run(k *kind, n int) []*own {
	all := make([]*own, 0, n)
	if k.atOnce {
		// The first one makes the connection.
		all = append(all, c.ask(k))
		more := make([]*own, streams)
		var done sync.WaitGroup
		for i := range more {
			done.Add(1)
			go func(i int) {
				defer done.Done()
				more[i] = c.ask(k)
			}(i)
		}
		done.Wait()
		return append(all, more...)
	}
	if k.name == "assist" {
		for i := 0; i < nodes; i++ {
			live = &node{next: live}
		}
		defer func() { live, garbage = nil, nil }()
	}
	for i := 0; i < n; i++ {
		all = append(all, c.ask(k))
	}
	return all
}

// Makes one request, and waits until its handler is done.
func (c *client) ask(k *kind) *own {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o, id := begin(k)
	if k.before != nil {
		k.before(o)
	}
	if k.name == "gone" {
		go func() {
			<-o.arrived
			time.Sleep(wait)
			cancel()
		}()
	}
	o.Status = c.send(ctx, k, o, id)
	<-o.done
	return o
}

// Begins the one that does not end, and waits until it waits.
func (c *client) open() *own {
	k := kinds["endless"]
	o, id := begin(k)
	go func() {
		o.Status = c.send(context.Background(), k, o, id)
		<-o.done
		close(c.released)
	}()
	<-o.arrived
	return o
}

// The status of the answer; 0 where there is none.
func (c *client) send(ctx context.Context, k *kind, o *own, id string) int {
	client, url := c.plain, c.plainURL
	if k.ended != "normal" {
		// What fails on a connection that has been used is asked again.
		client.CloseIdleConnections()
	}
	if k.http2 {
		client, url = c.http2, c.http2URL
	}
	var body io.Reader
	if k.method == "POST" {
		body = strings.NewReader("some text")
	}
	r, err := http.NewRequestWithContext(ctx, k.method, url+k.path, body)
	must(err)
	r.Header.Set("X-Id", id)
	if !k.bare {
		r.Header.Set("Traceparent", "00-"+o.TraceID+"-"+o.ParentID+"-01")
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return 0
	}
	return answer.StatusCode
}
