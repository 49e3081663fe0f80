package main

import (
	"bufio"
	"encoding/json"
	"math"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// The account that the program keeps of itself: what a tracer that sees everything must report.
// Each goroutine writes only its own record, so keeping the account adds no waits and no wakes.

// A wait of a goroutine: parked at some time within [From, To], woken by By.
type wait struct {
	Kind string `json:"kind"`    // neutral name; the reason that Go gives differs by version
	From int64  `json:"from_ns"` // just before the operation
	To   *int64 `json:"to_ns"`   // just after it; null when it never ends
	By   string `json:"by"`      // goid of the waker, "timer", "netpoll", or "" where it is open
	At   string `json:"at"`      // the function that waits
	May  bool   `json:"may"`     // it may be too short to be reported, or not happen at all

	of *goroutine
}

// A goroutine's own record. Times are CLOCK_MONOTONIC in nanoseconds.
type goroutine struct {
	Record      string  `json:"record"`
	Kind        string  `json:"kind"` // go, main, afterfunc, coroutine, cthread
	Goid        int64   `json:"goid"`
	Parent      int64   `json:"parent"`
	SpawnNS     int64   `json:"spawn_ns"` // just before the go statement
	FirstNS     int64   `json:"first_ns"` // its first statement
	LastNS      *int64  `json:"last_ns"`  // its last statement; null when it never ends
	Entry       string  `json:"entry"`
	CreatedBy   string  `json:"created_by"`
	CreatedFile string  `json:"created_file"`
	CreatedLine int     `json:"created_line"` // 0: not known
	FreeWaits   bool    `json:"free_waits"`   // it may wait for reasons of the runtime, too
	Waits       []*wait `json:"waits"`

	// Held while writing to a record: the account is written while some goroutines still live.
	// Nobody waits for it before that, so it adds no waits of its own.
	mu sync.Mutex
}

// What a parent hands to a goroutine that it is about to start.
type birth struct {
	parent  int64
	spawnNS int64
	by      string
	file    string
	line    int
}

var (
	monoBase int64
	timeBase time.Time

	records     [1 << 16]atomic.Pointer[goroutine]
	recordCount atomic.Int64
)

// initClock finds CLOCK_MONOTONIC's value once; later readings go through time.Since, which reads
// the same clock without a system call.
func initClock() {
	timeBase = time.Now()
	var ts syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&ts)), 0)
	monoBase = ts.Nano()
}

// clocks reads both clocks at one time: the goroutine may be kept from running between two readings, so the
// closest of many pairs is taken.
func clocks() (mono, unix int64) {
	closest := int64(math.MaxInt64)
	for i := 0; i < 100; i++ {
		before := now()
		wall := time.Now().UnixNano()
		if apart := now() - before; apart < closest {
			closest, mono, unix = apart, before+apart/2, wall
		}
	}
	return mono, unix
}

func now() int64 { return monoBase + int64(time.Since(timeBase)) }

// goid reads the number from the header of the goroutine's own stack dump.
func goid() int64 {
	var buf [64]byte
	n := runtime.Stack(buf[:], false)
	id := int64(0)
	for _, c := range buf[len("goroutine "):n] {
		if c < '0' || c > '9' {
			break
		}
		id = id*10 + int64(c-'0')
	}
	return id
}

// forks announces the go statement on the line below its call.
func (g *goroutine) forks() birth {
	var pcs [1]uintptr
	runtime.Callers(2, pcs[:])
	f, _ := runtime.CallersFrames(pcs[:]).Next()
	return birth{parent: g.Goid, by: f.Function, file: f.File, line: f.Line + 1, spawnNS: now()}
}

// begin is the first statement of a goroutine's function.
func (b birth) begin() *goroutine { return b.beginAs("go", "") }

func (b birth) beginAs(kind, entry string) *goroutine {
	first := now()
	if entry == "" {
		var pcs [32]uintptr
		n := runtime.Callers(1, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for {
			f, more := frames.Next()
			if f.Function != "runtime.goexit" && f.Function != "" {
				entry = f.Function
			}
			if !more {
				break
			}
		}
	}
	g := &goroutine{
		Record: "goroutine", Kind: kind, Goid: goid(), Parent: b.parent, SpawnNS: b.spawnNS,
		FirstNS: first, Entry: entry, CreatedBy: b.by, CreatedFile: b.file, CreatedLine: b.line,
	}
	records[recordCount.Add(1)-1].Store(g)
	return g
}

// end is the last statement, deferred so that panics and runtime.Goexit pass it too.
func (g *goroutine) end() {
	t := now()
	g.mu.Lock()
	g.LastNS = &t
	g.mu.Unlock()
}

// waits announces a blocking operation; over (or overBy) follows it.
func (g *goroutine) waits(kind string) *wait {
	return g.waitsAt(2, kind)
}

// waitsAt announces one of the function that is so many callers away.
func (g *goroutine) waitsAt(skip int, kind string) *wait {
	var pcs [1]uintptr
	runtime.Callers(skip+1, pcs[:])
	f, _ := runtime.CallersFrames(pcs[:]).Next()
	w := &wait{Kind: kind, From: now(), At: f.Function, of: g}
	g.mu.Lock()
	g.Waits = append(g.Waits, w)
	g.mu.Unlock()
	return w
}

// mayWait announces an operation that usually does not block for long.
func (g *goroutine) mayWait(kind string) *wait {
	w := g.waitsAt(2, kind)
	g.mu.Lock()
	w.May = true
	g.mu.Unlock()
	return w
}

// within says that the wait is in another function.
func (w *wait) within(f func()) *wait {
	name := runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name()
	w.of.mu.Lock()
	w.At = name
	w.of.mu.Unlock()
	return w
}

func (w *wait) over(by string) {
	t := now()
	w.of.mu.Lock()
	w.To = &t
	w.By = by
	w.of.mu.Unlock()
}

func (w *wait) overBy(goid int64) { w.over(strconv.FormatInt(goid, 10)) }

// sleep is a time.Sleep that stands in the account.
func (g *goroutine) sleep(d time.Duration) {
	w := g.waits("sleep")
	time.Sleep(d)
	w.over("timer")
}

// writeAccount writes one JSON object a line: a header, then a goroutine each.
func writeAccount(path string, checksum uint64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(f)
	enc := json.NewEncoder(out)
	mono, unix := clocks()
	header := map[string]interface{}{
		"record": "header", "go_version": runtime.Version(), "arch": runtime.GOARCH, "pid": os.Getpid(),
		"mono_ns": mono, "unix_ns": unix, "checksum": strconv.FormatUint(checksum, 16),
		"goroutines": recordCount.Load(),
	}
	if err := enc.Encode(header); err != nil {
		return err
	}
	for i := int64(0); i < recordCount.Load(); i++ {
		if g := records[i].Load(); g != nil {
			g.mu.Lock()
			err := enc.Encode(g)
			g.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return f.Close()
}
