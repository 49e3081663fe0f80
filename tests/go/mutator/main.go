// Mutator moves the only pointer to each of some channels between heap, stack, globals, channels, maps and
// closures as fast as it can, while a goroutine waits on each channel. None of those is ever leaked: with the
// end of the input each gets what it waits for. It tells the number of moves then.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

const movers = 8

type box struct {
	next *box
	ch   chan int
	pad  [5]uintptr
}

var (
	globals [movers]struct {
		_  [56]byte
		ch chan int
	}
	tree [movers]*box
	stop atomic32
	done sync.WaitGroup
)

// atomic.Int32 came with Go 1.19, and is not needed for one flag.
type atomic32 struct{ v int32 }

func (a *atomic32) set()      { atomic.StoreInt32(&a.v, 1) }
func (a *atomic32) get() bool { return atomic.LoadInt32(&a.v) != 0 }

//go:noinline
func deep(n int, ch chan int) chan int {
	var room [16]uintptr
	if n == 0 {
		return ch
	}
	room[n%16] = uintptr(n)
	got := deep(n-1, ch)
	if room[n%16] != uintptr(n) {
		panic("room")
	}
	return got
}

//go:noinline
func onHeap(id int, ch chan int) {
	b := &box{ch: ch}
	for i := 0; i < 3; i++ {
		b = &box{next: b}
	}
	tree[id] = b
}

//go:noinline
func offHeap(id int) chan int {
	b := tree[id]
	tree[id] = nil
	for b.next != nil {
		b = b.next
	}
	ch := b.ch
	b.ch = nil
	return ch
}

func wait(ch <-chan int) {
	<-ch
	done.Done()
}

// The goroutine's own argument is gone once it waits: only the mover has the channel.
func mover(id int, moves *uint64) {
	ch := make(chan int)
	done.Add(1)
	go wait(ch)
	m := map[int]chan int{}
	passed := make(chan chan int, 1)
	back := make(chan chan int)
	hand := make(chan chan int)
	go func() {
		for c := range hand {
			c = deep(3, c)
			back <- c
		}
	}()
	seed := uint32(id*7919 + 1)
	for !stop.get() {
		seed = seed*1664525 + 1013904223
		*moves++
		switch seed >> 24 % 7 {
		case 0:
			globals[id].ch = ch
			ch = nil
			ch, globals[id].ch = globals[id].ch, nil
		case 1:
			onHeap(id, ch)
			ch = nil
			ch = offHeap(id)
		case 2:
			m[int(seed>>16)&255] = ch
			ch = nil
			for k, v := range m {
				ch = v
				delete(m, k)
			}
		case 3:
			passed <- ch
			ch = nil
			ch = <-passed
		case 4:
			ch = deep(int(seed>>20)&15+1, ch)
		case 5:
			hand <- ch
			ch = nil
			ch = <-back
		case 6:
			c := ch
			f := func() chan int { return c }
			tree[id] = &box{}
			ch = f()
		}
	}
	close(hand)
	ch <- 1
	done.Done()
}

func main() {
	moves := make([]uint64, movers*8)
	for id := 0; id < movers; id++ {
		done.Add(1)
		go mover(id, &moves[id*8])
	}
	// Garbage, so that memory is given up and taken again.
	go func() {
		var keep [64][]byte
		for i := 0; !stop.get(); i++ {
			keep[i%64] = make([]byte, 64+i%4096)
			if i%1000 == 0 {
				runtime.Gosched()
			}
		}
	}()
	fmt.Println("READY")
	bufio.NewReader(os.Stdin).ReadString('\n')
	stop.set()
	done.Wait()
	var all uint64
	for _, n := range moves {
		all += n
	}
	fmt.Println("MOVES", all)
}
