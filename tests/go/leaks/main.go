// Leaks goroutines in every way that gotrace has a verdict for, or runs what looks like a leak and is none.
//
//	leaks leak      the leaks
//	leaks healthy   their healthy twins
//
// Prints READY when all of them have begun, and runs until standard input ends.
package main

import (
	"bufio"
	"fmt"
	"os"
	"sync"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: leaks leak|healthy")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "leak":
		leak()
	case "healthy":
		healthy()
	}
	// Somebody has to move, or nobody can be said to stand.
	go heartbeat()
	fmt.Println("READY")
	bufio.NewReader(os.Stdin).ReadString('\n')
}

func heartbeat() {
	for {
		time.Sleep(10 * time.Millisecond)
	}
}

// request runs f as a server runs a handler: in a goroutine that ends with it.
func request(f func()) {
	var done sync.WaitGroup
	done.Add(1)
	go func() {
		defer done.Done()
		f()
	}()
	done.Wait()
}
