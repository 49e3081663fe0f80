// Parked starts goroutines that wait for ever, each at a channel of its own, of which some are leaked.
//
//	parked [-n GOROUTINES] [-leaked GOROUTINES]
//
// Of the others the program keeps the channels. Prints READY when all of them wait, and runs until standard input ends.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

var kept []chan int

func main() {
	n := flag.Int("n", 1000000, "goroutines")
	leaked := flag.Int("leaked", 500000, "goroutines of these whose channel nothing refers to")
	flag.Parse()
	var begun int64
	for i := 0; i < *n; i++ {
		ch := make(chan int)
		// Evenly among the others.
		if i**leaked/(*n) == (i+1)**leaked/(*n) {
			kept = append(kept, ch)
			go keptWait(ch, &begun)
		} else {
			go leakedWait(ch, &begun)
		}
	}
	for atomic.LoadInt64(&begun) < int64(*n) {
		time.Sleep(10 * time.Millisecond)
	}
	// The last of them has begun, and does not wait yet.
	time.Sleep(100 * time.Millisecond)
	go heartbeat()
	fmt.Println("READY")
	bufio.NewReader(os.Stdin).ReadString('\n')
	for _, ch := range kept {
		close(ch)
	}
}

//go:noinline
func keptWait(ch chan int, begun *int64) {
	atomic.AddInt64(begun, 1)
	<-ch
}

//go:noinline
func leakedWait(ch chan int, begun *int64) {
	atomic.AddInt64(begun, 1)
	<-ch
}

// Somebody has to move, or nobody can be said to stand.
func heartbeat() {
	for {
		time.Sleep(10 * time.Millisecond)
	}
}
