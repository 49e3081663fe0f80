// account is a Go program that does everything that a goroutine tracer must understand and keeps an
// account of it: who was born when, by which go statement, what it waited for, when it ended.
//
// It prints "READY {json}", waits for a line on standard input (so that a tracer can attach first),
// runs what its flags say, writes the account to -account, prints "DONE {json}", and stays until
// standard input ends or brings another line. With -now it waits for nothing.
//
// It compiles with Go 1.19 to 1.27; what is newer stands in files with build tags.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strings"
	"sync/atomic"
	"time"
)

var (
	scenario   = flag.String("scenario", "all", "comma-separated: all, "+strings.Join(scenarioNames(), ", ")+", churn, pingpong, births, park")
	account    = flag.String("account", "", "file for the account")
	number     = flag.Int("n", 1000, "churn: goroutines; pingpong: round trips; births: goroutines; park: goroutines; storm: panics")
	rate       = flag.Float64("rate", 1000, "churn: goroutines a second; 0: as fast as it goes")
	nap        = flag.Duration("nap", 10*time.Millisecond, "length of an arranged wait")
	immediate  = flag.Bool("now", false, "do not wait for a line before and after the run")
	exectrace  = flag.Bool("exectrace", false, "write Go's execution trace to nowhere meanwhile")
	cpuprofile = flag.String("cpuprofile", "", "write a CPU profile of the run to this file")
)

// checksum is a sum over results that do not depend on timing: the same whether traced or not.
var checksum atomic.Uint64

// result mixes a value and adds it to the checksum.
func result(v uint64) {
	v ^= v >> 33
	v *= 0xff51afd7ed558ccd
	v ^= v >> 29
	checksum.Add(v)
}

// figures are what a run reports beside the checksum.
type figures map[string]interface{}

func say(word string, f figures) {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	fmt.Println(word, string(b))
}

func main() {
	flag.Parse()
	initClock()
	me := birth{by: "", spawnNS: now()}.beginAs("main", "runtime.main")
	me.FreeWaits = true
	stdin := bufio.NewReader(os.Stdin)
	say("READY", figures{"pid": os.Getpid(), "go_version": runtime.Version(), "arch": runtime.GOARCH, "cgo": withCgo})
	if !*immediate {
		if _, err := stdin.ReadString('\n'); err != nil && err != io.EOF {
			fmt.Fprintln(os.Stderr, "account: reading standard input:", err)
			os.Exit(1)
		}
	}
	done := figures{}
	stop := instruments()
	start := time.Now()
	for _, name := range strings.Split(*scenario, ",") {
		if err := run(me, name, done); err != nil {
			fmt.Fprintln(os.Stderr, "account:", err)
			os.Exit(2)
		}
	}
	done["seconds"] = time.Since(start).Seconds()
	stop()
	if *account != "" {
		// Whoever is still on the way out gets there before the account is closed.
		time.Sleep(20 * time.Millisecond)
		if err := writeAccount(*account, checksum.Load()); err != nil {
			fmt.Fprintln(os.Stderr, "account:", err)
			os.Exit(1)
		}
	}
	done["checksum"] = fmt.Sprintf("%x", checksum.Load())
	say("DONE", done)
	if !*immediate {
		stdin.ReadString('\n')
	}
}

// instruments starts what the flags ask for and returns what ends it.
func instruments() func() {
	var stops []func()
	if *exectrace {
		if err := trace.Start(io.Discard); err != nil {
			panic(err)
		}
		stops = append(stops, trace.Stop)
	}
	if *cpuprofile != "" {
		f, err := os.Create(*cpuprofile)
		if err != nil {
			panic(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			panic(err)
		}
		stops = append(stops, func() { pprof.StopCPUProfile(); f.Close() })
	}
	return func() {
		for _, s := range stops {
			s()
		}
	}
}

func run(me *goroutine, name string, done figures) error {
	switch name {
	case "all":
		for _, s := range scenarios {
			s.run(me)
		}
	case "churn":
		churn(*number, *rate, done)
	case "pingpong":
		pingpong(*number, done)
	case "births":
		births(*number, done)
	case "park":
		park(*number, done)
	case "storm":
		storm(*number, done)
	default:
		for _, s := range scenarios {
			if s.name == name {
				s.run(me)
				return nil
			}
		}
		return fmt.Errorf("no scenario %q", name)
	}
	return nil
}
