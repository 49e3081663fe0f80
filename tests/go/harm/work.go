package main

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// size is that of the padding, so that the linker keeps it.
var size int

// work makes and ends goroutines, which wait for each other, for locks and for time, until the time is
// over or SIGTERM comes. Each round comes to the same number, which it prints at the end: who died on the way,
// or went astray, does not print it.
func work(d time.Duration) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	sum := round()
	fmt.Println("ready")
	for over := time.After(d); ; {
		if again := round(); again != sum {
			fmt.Fprintf(os.Stderr, "harm: a round came to %x, not %x\n", again, sum)
			os.Exit(3)
		}
		select {
		case <-ended:
		case <-over:
		case <-time.After(time.Millisecond):
			continue
		}
		break
	}
	fmt.Printf("ok %x\n", sum)
}

// round has goroutines of several kinds add up numbers.
func round() uint64 {
	const goroutines = 16
	numbers, results := make(chan uint64), make(chan uint64, 3)
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		total uint64
	)
	for i := 0; i < goroutines; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range numbers {
				h := hash(n)
				if n%5 == 0 {
					time.Sleep(20 * time.Microsecond)
				}
				mu.Lock()
				total += h
				mu.Unlock()
				results <- h
			}
		}()
	}
	go func() {
		for n := uint64(0); n < 4*goroutines; n++ {
			numbers <- n
		}
		close(numbers)
		wg.Wait()
		close(results)
	}()
	var sum uint64
	for h := range results {
		sum += h
	}
	if sum != total {
		fmt.Fprintf(os.Stderr, "harm: %x through the channel, %x under the lock\n", sum, total)
		os.Exit(3)
	}
	return sum
}

// hash is FNV-1a of a number, a hundred times over.
func hash(n uint64) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < 100; i++ {
		for b := uint(0); b < 64; b += 8 {
			h = (h ^ (n >> b & 0xff)) * 1099511628211
		}
	}
	return h
}
