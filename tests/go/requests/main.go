// requests is a server with its own client, which tells of each request what it was and where its time went by its own
// clocks. It obeys lines:
//
//	run N KIND…   makes N requests of each kind, one after the other; then a line of JSON for each, then {"done":…}
//	open          begins a request that does not end, and answers once its handler waits
//	release       ends that one; then its line, then {"done":…}
//
// It ends with its standard input.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What the program knows of one of its requests.
type own struct {
	Kind     string           `json:"kind"`
	Protocol string           `json:"protocol"`
	Method   string           `json:"method"`
	Path     string           `json:"path"`
	Route    string           `json:"route"`
	Status   int              `json:"status"`
	Ended    string           `json:"ended"`
	Goid     uint64           `json:"goid"`
	Start    int64            `json:"start_unix_nano"`
	Total    int64            `json:"total_ns"`
	Phases   map[string]int64 `json:"phases"`
	TraceID  string           `json:"trace_id"`
	ParentID string           `json:"parent_span_id"`
	// The goroutine that ends its wait; 0 where it is none.
	Partner uint64 `json:"partner"`
	// What it reads from.
	Peer string `json:"peer"`

	// The handler waits, or is about to.
	arrived chan struct{}
	// The handler is done.
	done chan struct{}
}

// Adds what has passed.
func (o *own) add(phase string, begin time.Time) { o.Phases[phase] += int64(time.Since(begin)) }

// Requests by the number in their header X-Id.
var open struct {
	sync.Mutex
	byID map[string]*own
	next uint64
}

var began = uint64(time.Now().UnixNano())

func begin(k *kind) (*own, string) {
	open.Lock()
	defer open.Unlock()
	open.next++
	id := strconv.FormatUint(open.next, 10)
	o := &own{Kind: k.name, Protocol: "http/1.1", Method: k.method, Path: k.path, Ended: k.ended,
		Phases: map[string]int64{}, arrived: make(chan struct{}, 1), done: make(chan struct{})}
	if patterns {
		o.Route = k.route
	}
	if k.http2 {
		o.Protocol = "http/2"
	}
	if !k.bare {
		o.TraceID = fmt.Sprintf("%016x%016x", began, open.next)
		o.ParentID = fmt.Sprintf("%016x", began+open.next)
	}
	open.byID[id] = o
	return o, id
}

func of(r *http.Request) *own {
	open.Lock()
	defer open.Unlock()
	return open.byID[r.Header.Get("X-Id")]
}

// The number of the goroutine that asks.
func goid() uint64 {
	var buffer [64]byte
	text := string(buffer[:runtime.Stack(buffer[:], false)])
	n, _ := strconv.ParseUint(strings.Fields(text)[1], 10, 64)
	return n
}

// Keeps the account of whatever is inside.
func accounted(inside http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		o := of(r)
		o.Start, o.Goid = begin.UnixNano(), goid()
		defer func() {
			o.Total = int64(time.Since(begin))
			close(o.done)
		}()
		inside.ServeHTTP(w, r)
	})
}

// Whether a ServeMux has methods and wildcards: Go 1.22 and later, where the main module says so too.
var patterns = func() bool {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /x/{id}", func(http.ResponseWriter, *http.Request) {})
	_, pattern := mux.Handler(httptest.NewRequest("GET", "/x/1", nil))
	return pattern != ""
}()

// What the runtime says that assists have taken, after a collection; -1 before Go 1.20.
func assists() int64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/cpu/classes/gc/mark/assist:cpu-seconds"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindFloat64 {
		return -1
	}
	return int64(sample[0].Value.Float64() * 1e9)
}

func say(line interface{}) {
	text, err := json.Marshal(line)
	must(err)
	os.Stdout.Write(append(text, '\n'))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	open.byID = map[string]*own{}
	c := serve()
	say(map[string]interface{}{"ready": true, "go_version": runtime.Version(), "patterns": patterns})
	in := bufio.NewScanner(os.Stdin)
	var endless *own
	for in.Scan() {
		words := strings.Fields(in.Text())
		var finished []*own
		before := assists()
		switch words[0] {
		case "run":
			n, err := strconv.Atoi(words[1])
			must(err)
			for _, name := range words[2:] {
				finished = append(finished, c.run(kinds[name], n)...)
			}
		case "open":
			endless = c.open()
			say(map[string]interface{}{"open": true, "trace_id": endless.TraceID, "goid": endless.Goid})
			continue
		case "release":
			close(release)
			<-c.released
			finished = append(finished, endless)
		}
		after := assists()
		for _, o := range finished {
			say(o)
		}
		line := map[string]interface{}{"done": len(finished)}
		if before >= 0 {
			line["assist_ns"] = after - before
		}
		say(line)
	}
}
