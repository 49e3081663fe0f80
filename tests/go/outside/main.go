// Goroutines that wait for something outside of their process: `outside WHAT FILE FIFO`, or `outside net lo` where the
// loopback interface has to be brought up. Prints READY and what the test
// has to know, and ends with its standard input.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

var programs = map[string]func() string{"net": network, "calls": calls}

var keep []any

func main() {
	fmt.Println("READY " + programs[os.Args[1]]())
	io.Copy(io.Discard, os.Stdin)
	for _, kept := range keep {
		if command, ok := kept.(*exec.Cmd); ok {
			command.Process.Kill()
		}
	}
}

// network starts goroutines that wait for sockets, a pipe and timers.
func network() string {
	if len(os.Args) > 2 {
		loopback()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	u, err := net.Listen("unix", "@gotrace-outside-"+fmt.Sprint(os.Getpid()))
	check(err)
	go accept(l)
	go accept(u)
	go fetch(dial(l))
	go push(dial(l))
	go soon(dial(l))
	go unix(dial(u))
	r, w, err := os.Pipe()
	check(err)
	keep = append(keep, w)
	go pipe(r)
	go sleeper()
	go timeout(make(chan int))
	answers := make(chan int)
	go asker(dial(l), answers)
	go blocked(answers)
	var mu sync.Mutex
	locked := make(chan bool)
	go flusher(&mu, dial(l), locked)
	<-locked
	go put(&mu)
	return l.Addr().String()
}

// loopback brings up the interface of a new network namespace.
func loopback() {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	check(err)
	request := struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}{flags: syscall.IFF_UP | syscall.IFF_RUNNING}
	copy(request.name[:], "lo")
	syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request)))
	syscall.Close(fd)
}

func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		keep = append(keep, c)
	}
}

func dial(l net.Listener) net.Conn {
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	check(err)
	return c
}

//go:noinline
func fetch(c net.Conn) { c.Read(make([]byte, 10)) }

//go:noinline
func soon(c net.Conn) {
	c.SetReadDeadline(time.Now().Add(3000 * time.Second))
	c.Read(make([]byte, 10))
}

// push writes until the connection takes no more.
//
//go:noinline
func push(c net.Conn) {
	c.SetWriteDeadline(time.Now().Add(4000 * time.Second))
	for {
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			return
		}
	}
}

//go:noinline
func unix(c net.Conn) { c.Read(make([]byte, 10)) }

//go:noinline
func pipe(r *os.File) { r.Read(make([]byte, 1)) }

//go:noinline
func sleeper() { time.Sleep(5000 * time.Second) }

//go:noinline
func timeout(never chan int) {
	select {
	case <-time.After(7000 * time.Second):
	case <-never:
	}
}

// asker has what blocked waits for, and waits itself for an answer.
//
//go:noinline
func asker(c net.Conn, answers chan int) {
	c.Read(make([]byte, 10))
	answers <- 1
}

//go:noinline
func blocked(answers chan int) { <-answers }

// flusher keeps a lock while it waits for an answer.
//
//go:noinline
func flusher(mu *sync.Mutex, c net.Conn, locked chan bool) {
	mu.Lock()
	defer mu.Unlock()
	close(locked)
	c.Read(make([]byte, 10))
}

//go:noinline
func put(mu *sync.Mutex) {
	mu.Lock()
	mu.Unlock()
}

// calls starts goroutines in system calls: a file lock that the test holds, a FIFO that nobody opens, a pipe, a child.
func calls() string {
	go locker(os.Args[2])
	check(syscall.Mkfifo(os.Args[3], 0o600))
	go opener(os.Args[3])
	var ends [2]int
	check(syscall.Pipe(ends[:]))
	go reader(ends[0])
	command := exec.Command("sleep", "1000")
	check(command.Start())
	keep = append(keep, command)
	go parent(command)
	return fmt.Sprint(command.Process.Pid)
}

//go:noinline
func locker(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(err)
	syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	keep = append(keep, f)
}

//go:noinline
func opener(path string) { syscall.Open(path, syscall.O_RDONLY, 0) }

//go:noinline
func reader(fd int) { syscall.Read(fd, make([]byte, 1)) }

//go:noinline
func parent(command *exec.Cmd) { command.Process.Wait() }

func check(err error) {
	if err != nil && !strings.Contains(err.Error(), "file exists") {
		panic(err)
	}
}
