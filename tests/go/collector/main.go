// Makes garbage in goroutines of two kinds, stops the world for other reasons, and tells what the runtime itself counted
// meanwhile: one line of JSON.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"
)

// What the runtime counted between two looks.
type account struct {
	Cycles   uint32 `json:"cycles"`
	PauseNs  uint64 `json:"pause_ns"`
	AssistNs *int64 `json:"assist_ns"`
	// Calls of ReadMemStats and of GC, by this program.
	Reads int `json:"reads"`
	Calls int `json:"calls"`
}

func churn(size, step int, until time.Time) {
	keep := make([][]byte, 5000)
	for time.Now().Before(until) {
		for i := 0; i < 200; i++ {
			b := make([]byte, size)
			keep[(int(b[0])+i*step)%len(keep)] = b
		}
	}
}

//go:noinline
func decode(until time.Time) { churn(4096, 7, until) }

//go:noinline
func index(until time.Time) { churn(4096, 11, until) }

//go:noinline
func collectStats(m *runtime.MemStats) { runtime.ReadMemStats(m) }

//go:noinline
func collectNow() { runtime.GC() }

func assists() *int64 {
	s := []metrics.Sample{{Name: "/cpu/classes/gc/mark/assist:cpu-seconds"}}
	metrics.Read(s)
	// From Go 1.20 on.
	if s[0].Value.Kind() != metrics.KindFloat64 {
		return nil
	}
	ns := int64(s[0].Value.Float64() * 1e9)
	return &ns
}

func main() {
	in := bufio.NewReader(os.Stdin)
	os.Stdout.WriteString("READY\n")
	if _, err := in.ReadString('\n'); err != nil {
		return
	}
	var before, m, after runtime.MemStats
	collectStats(&before)
	assistsBefore := assists()
	until := time.Now().Add(time.Second)
	var done sync.WaitGroup
	for i := 0; i < 2; i++ {
		done.Add(2)
		go func() { defer done.Done(); decode(until) }()
		go func() { defer done.Done(); index(until) }()
	}
	told := account{Reads: 7, Calls: 3}
	for i := 0; i < 5; i++ {
		time.Sleep(100 * time.Millisecond)
		collectStats(&m)
	}
	done.Wait()
	for i := 0; i < 3; i++ {
		collectNow()
	}
	collectStats(&after)
	told.Cycles, told.PauseNs = after.NumGC-before.NumGC, after.PauseTotalNs-before.PauseTotalNs
	if now := assists(); now != nil {
		ns := *now - *assistsBefore
		told.AssistNs = &ns
	}
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		panic(err)
	}
	in.ReadString('\n')
}
