// Leaks goroutines in many patterns, each beside its healthy twin: the same shape, where what is waited for can
// still be reached and done by somebody who will run.
//
//	leakpatterns [-rotate N] [PATTERN ...]
//
// Runs the named patterns, or all of them. When everything that will block has blocked, it prints its own account
// and READY:
//
//	LEAKED <pattern> <goid> ...    these never run again
//	HEALTHY <pattern> <goid> ...   these wait as well, and somebody can wake each
//
// Then it obeys lines of standard input, and ends with it:
//
//	profile    prints PROFILE <goid> ..., the runtime's own goroutineleak profile, or PROFILE none
//	release    wakes all that are healthy, and prints RELEASED, with the goids of those that did not end
//
// -rotate chooses which of the ways to hold something each twin uses.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A shape of a program: it starts goroutines that block, and returns. Whoever can wake them is told to hold, which
// forgets it where the pattern is to leak.
type pattern struct {
	name  string
	shape func(*scene)
}

var patterns []pattern

func register(name string, shape func(*scene)) {
	patterns = append(patterns, pattern{name, shape})
}

// One run of a pattern. It must not refer to anything that is waited for.
type scene struct {
	name    string
	healthy bool
	keeper  int
}

var account struct {
	sync.Mutex
	waiting map[uint64]*scene
}

func goid() uint64 {
	var buffer [64]byte
	text := string(buffer[:runtime.Stack(buffer[:], false)])
	id, err := strconv.ParseUint(strings.Fields(text)[1], 10, 64)
	if err != nil {
		panic(err)
	}
	return id
}

// blocks starts a goroutine that is to block for ever, or until it is woken.
func (s *scene) blocks(f func()) {
	begun := make(chan struct{})
	go s.run(begun, f)
	<-begun
}

// waits starts one that is healthy in any case.
func (s *scene) waits(f func()) {
	twin := &scene{name: s.name, healthy: true}
	twin.blocks(f)
}

func (s *scene) run(begun chan struct{}, f func()) {
	id := goid()
	account.Lock()
	account.waiting[id] = s
	account.Unlock()
	close(begun)
	f()
	account.Lock()
	delete(account.waiting, id)
	account.Unlock()
}

// hold keeps what wakes the goroutines of a healthy scene.
func (s *scene) hold(wake func()) {
	if s.healthy {
		keepers[s.keeper%len(keepers)](wake)
	}
}

func play(p pattern, s *scene) {
	done := make(chan struct{})
	go func() {
		p.shape(s)
		close(done)
	}()
	<-done
}

// states gives what each goroutine does, by goid.
func states() map[uint64]string {
	buffer := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buffer, true)
		if n < len(buffer) {
			buffer = buffer[:n]
			break
		}
		buffer = make([]byte, 2*len(buffer))
	}
	found := make(map[uint64]string)
	for _, line := range bytes.Split(buffer, []byte("\n")) {
		rest := string(line)
		if !strings.HasPrefix(rest, "goroutine ") || !strings.HasSuffix(rest, ":") {
			continue
		}
		open := strings.IndexByte(rest, '[')
		id, err := strconv.ParseUint(rest[len("goroutine "):open-1], 10, 64)
		if err != nil {
			continue
		}
		state := rest[open+1:]
		found[id] = state[:strings.IndexAny(state, ",]")]
	}
	return found
}

// settle waits until all that are in the account block, for several looks in a row.
func settle() {
	calm := 0
	for begin := time.Now(); calm < 5; {
		if time.Since(begin) > 20*time.Second {
			fmt.Println("UNSETTLED")
			os.Exit(1)
		}
		time.Sleep(20 * time.Millisecond)
		calm++
		now := states()
		account.Lock()
		for id := range account.waiting {
			switch now[id] {
			case "", "running", "runnable", "sleep", "syscall":
				calm = 0
			}
		}
		account.Unlock()
	}
}

func tell() {
	lines := make(map[string][]uint64)
	account.Lock()
	for id, s := range account.waiting {
		word := "LEAKED "
		if s.healthy {
			word = "HEALTHY "
		}
		lines[word+s.name] = append(lines[word+s.name], id)
	}
	account.Unlock()
	names := make([]string, 0, len(lines))
	for name := range lines {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Println(name + list(lines[name]))
	}
}

func list(ids []uint64) string {
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	text := ""
	for _, id := range ids {
		text += fmt.Sprint(" ", id)
	}
	return text
}

// profile gives the goids of those that the runtime itself calls leaked.
func profile() string {
	p := pprof.Lookup("goroutineleak")
	if p == nil {
		return " none"
	}
	var text bytes.Buffer
	if err := p.WriteTo(&text, 2); err != nil {
		return " none"
	}
	var ids []uint64
	for _, line := range strings.Split(text.String(), "\n") {
		if strings.HasPrefix(line, "goroutine ") && strings.Contains(line, "(leaked)") {
			if id, err := strconv.ParseUint(strings.Fields(line)[1], 10, 64); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return list(ids)
}

func main() {
	rotate := flag.Int("rotate", 0, "which way to hold the first twin uses")
	flag.Parse()
	account.waiting = make(map[uint64]*scene)
	wanted := make(map[string]bool)
	for _, name := range flag.Args() {
		wanted[name] = true
	}
	for n, p := range patterns {
		if len(wanted) > 0 && !wanted[p.name] {
			continue
		}
		play(p, &scene{name: p.name})
		play(p, &scene{name: p.name, healthy: true, keeper: n + *rotate})
	}
	settle()
	// What a sync.Pool has is gone after the second collection.
	for i := 0; i < 3; i++ {
		runtime.GC()
		settle()
	}
	tell()
	fmt.Println("READY")
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		switch commands.Text() {
		case "profile":
			fmt.Println("PROFILE" + profile())
		case "release":
			fmt.Println("RELEASED" + release())
		}
	}
}

// release wakes whoever is held, and gives the goids of those that are healthy by the account and did not end.
func release() string {
	letGo()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		var left []uint64
		account.Lock()
		for id, s := range account.waiting {
			if s.healthy {
				left = append(left, id)
			}
		}
		account.Unlock()
		if len(left) == 0 || time.Since(begin) > 20*time.Second {
			return list(left)
		}
		// Finalizers and cleanups.
		runtime.GC()
	}
}
