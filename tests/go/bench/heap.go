package main

import (
	"errors"
	"runtime"
	"runtime/pprof"
	"sync/atomic"
	"time"
)

// record is what a program keeps much of: found by a map, linked to others, with a few small things of its own.
type record struct {
	id         uint64
	prev, next *record
	name       string
	fields     []*field
	more       map[string]*field
	tree       *node
	wait       chan struct{}
}

type field struct {
	key, value string
	of         *record
}

type node struct {
	left, right *node
	key         uint64
	value       *field
}

// shard is a cache: records by number, and in the order of their last use.
type shard struct {
	by    map[uint64]*record
	first *record
	tree  *node
	order [][]*record
}

var (
	shards []*shard
	// A seed of its own, so that every run makes the same heap.
	seed uint64 = 88172645463325252
)

func random() uint64 {
	seed ^= seed << 13
	seed ^= seed >> 7
	seed ^= seed << 17
	return seed
}

// perShard is how many records a shard has: about 16 MiB.
const perShard = 16384

// grow makes shards until the heap has so many bytes in use.
func grow(bytes uint64) (sample, error) {
	start, cpu := time.Now(), cpuTime()
	var m runtime.MemStats
	for m.HeapAlloc < bytes {
		for runtime.ReadMemStats(&m); m.HeapAlloc < bytes; runtime.ReadMemStats(&m) {
			shards = append(shards, newShard())
		}
		// What was taken by growing, and is not used any more, is not what is to be measured.
		runtime.GC()
		runtime.ReadMemStats(&m)
	}
	return sample{Count: int(m.HeapAlloc), CPUNS: float64(cpuTime() - cpu), WallNS: float64(time.Since(start))}, nil
}

func newShard() *shard {
	s := &shard{by: map[uint64]*record{}}
	all := make([]*record, perShard)
	for i := range all {
		r := &record{id: random(), name: text()}
		for n := int(random()%6) + 1; n > 0; n-- {
			r.fields = append(r.fields, &field{key: text(), value: text(), of: r})
		}
		if i%8 == 0 {
			r.more = map[string]*field{}
			for _, f := range r.fields {
				r.more[f.key] = f
			}
		}
		all[i] = r
		s.by[r.id] = r
		s.tree = insert(s.tree, &node{key: r.id, value: r.fields[0]})
	}
	// The order of use is not that of the addresses.
	for i := len(all) - 1; i > 0; i-- {
		j := int(random() % uint64(i+1))
		all[i], all[j] = all[j], all[i]
	}
	for i, r := range all {
		r.next = s.first
		if s.first != nil {
			s.first.prev = r
		}
		s.first = r
		// One of another shard.
		if other := shards; len(other) > 0 && i%4 == 0 {
			r.tree = other[random()%uint64(len(other))].tree
		}
	}
	for i := 0; i+64 <= len(all); i += 64 {
		s.order = append(s.order, append([]*record(nil), all[i:i+64]...))
	}
	return s
}

func text() string {
	b := make([]byte, 8+random()%24)
	for i := range b {
		b[i] = 'a' + byte(random()%26)
	}
	return string(b)
}

// insert needs no balance: the keys are random.
func insert(root, n *node) *node {
	at := &root
	for *at != nil {
		if n.key < (*at).key {
			at = &(*at).left
		} else {
			at = &(*at).right
		}
	}
	*at = n
	return root
}

// wait makes goroutines that wait for others: half of them on channels that records have, half on channels that
// nobody else has.
func wait(n int) (sample, error) {
	if len(shards) == 0 {
		return sample{}, errors.New("it has no heap yet")
	}
	start, cpu := time.Now(), cpuTime()
	var parked atomic.Int64
	for i := 0; i < n; i++ {
		c := make(chan struct{})
		if i%2 == 0 {
			s := shards[random()%uint64(len(shards))]
			r := s.order[random()%uint64(len(s.order))][i/2%64]
			if r.wait == nil {
				r.wait = c
			}
			c = r.wait
		}
		go under(i%8, c, &parked)
		if i%1024 == 1023 {
			runtime.Gosched()
		}
	}
	for parked.Load() < int64(n) {
		time.Sleep(time.Millisecond)
	}
	runtime.GC()
	return sample{Count: n, CPUNS: float64(cpuTime() - cpu), WallNS: float64(time.Since(start))}, nil
}

// collect runs the collector, and the longest pause of the goroutine that ticks is what it cost that.
func collect() (sample, error) {
	longest.Store(0)
	start, cpu := time.Now(), cpuTime()
	runtime.GC()
	wall, used := time.Since(start), cpuTime()-cpu
	time.Sleep(time.Millisecond)
	return sample{CPUNS: float64(used), WallNS: float64(wall), PauseNS: float64(longest.Load())}, nil
}

// leaked takes the runtime's own profile of leaked goroutines (Go 1.27), and counts them.
func leaked() (sample, error) {
	p := pprof.Lookup("goroutineleak")
	if p == nil {
		return sample{}, errors.New("this Go has no profile of leaked goroutines")
	}
	longest.Store(0)
	var bytes count
	start, cpu := time.Now(), cpuTime()
	err := p.WriteTo(&bytes, 0)
	wall, used := time.Since(start), cpuTime()-cpu
	time.Sleep(time.Millisecond)
	pause := longest.Load()
	return sample{Count: p.Count(), CPUNS: float64(used), WallNS: float64(wall), PauseNS: float64(pause)}, err
}
