// demo is a small shop: customers order over the network, cooks work, a till is locked, a ledger is
// written, and a careless handler leaks a goroutine now and then. `cargo xtask demo` shows what
// gotrace sees of it. It runs for -for, or until it is ended.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

var (
	duration = flag.Duration("for", 5*time.Minute, "how long the shop is open")
	orders   = make(chan order)
	till     sync.Mutex
	takings  int
)

type order struct {
	number int
	ready  chan string
}

func main() {
	flag.Parse()
	door, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	for i := 0; i < 3; i++ {
		go cook()
	}
	go openShop(door)
	go bookkeeper()
	go janitor()
	go radio()
	for i := 0; i < 4; i++ {
		go customer(door.Addr().String(), i)
		time.Sleep(40 * time.Millisecond)
	}
	time.Sleep(*duration)
}

// openShop accepts connections: it waits on the network.
func openShop(door net.Listener) {
	for number := 0; ; number++ {
		conn, err := door.Accept()
		if err != nil {
			return
		}
		if number%25 == 24 {
			leakyHandler(conn)
		} else {
			go serve(conn, number)
		}
	}
}

// serve hands an order to the cooks and waits for the dish, or for patience to run out.
func serve(conn net.Conn, number int) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	ready := make(chan string, 1)
	go complain(number)
	orders <- order{number, ready}
	select {
	case dish := <-ready:
		till.Lock()
		takings++
		time.Sleep(2 * time.Millisecond)
		till.Unlock()
		fmt.Fprintf(conn, "%s for %s", dish, line)
	case <-time.After(time.Second):
		fmt.Fprintln(conn, "sold out")
	}
}

// complain panics, and calms down again.
func complain(number int) {
	defer func() { recover() }()
	if number%10 == 0 {
		panic("too salty")
	}
	if number%10 == 1 {
		runtime.Goexit()
	}
}

// cook makes a dish with two helpers.
func cook() {
	for o := range orders {
		var helpers sync.WaitGroup
		helpers.Add(2)
		for i := 0; i < 2; i++ {
			go func() {
				defer helpers.Done()
				time.Sleep(4 * time.Millisecond)
			}()
		}
		helpers.Wait()
		o.ready <- "soup"
	}
}

// leakyHandler is the bug: it waits for an answer which nobody will give.
func leakyHandler(conn net.Conn) {
	answer := make(chan string)
	go waitForever(answer)
	conn.Close()
}

func waitForever(answer chan string) { <-answer }

// customer orders again and again.
func customer(address string, i int) {
	for {
		conn, err := net.Dial("tcp4", address)
		if err == nil {
			fmt.Fprintf(conn, "customer %d\n", i)
			bufio.NewReader(conn).ReadString('\n')
			conn.Close()
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// bookkeeper writes to a pipe that the clerk reads in blocking mode: a system call that waits.
func bookkeeper() {
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		return
	}
	go clerk(pipe[0])
	for range time.Tick(200 * time.Millisecond) {
		till.Lock()
		syscall.Write(pipe[1], []byte{byte(takings)})
		till.Unlock()
	}
}

func clerk(fd int) {
	var b [1]byte
	for {
		if n, err := syscall.Read(fd, b[:]); n != 1 || err != nil {
			return
		}
	}
}

// janitor sweeps when a condition is signalled by a timer, and collects the garbage.
func janitor() {
	cond := sync.NewCond(&sync.Mutex{})
	for {
		time.AfterFunc(500*time.Millisecond, cond.Signal)
		cond.L.Lock()
		cond.Wait()
		cond.L.Unlock()
		runtime.GC()
	}
}

// radio plays: it computes on its own thread and never blocks for long.
func radio() {
	runtime.LockOSThread()
	x := uint64(1)
	for {
		for i := 0; i < 200_000; i++ {
			x = x*6364136223846793005 + 1
		}
		runtime.Gosched()
		time.Sleep(5 * time.Millisecond)
	}
}
