package main

import (
	"io"
	"net"
	"sync"
	"syscall"
)

// Waits that the world outside ends: the network poller and the kernel.

func network(me *goroutine) {
	var wg sync.WaitGroup
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	wg.Add(1)
	b := me.forks()
	go server(b, &wg, listener)
	wg.Add(1)
	b = me.forks()
	go client(b, &wg, listener.Addr().String())
	wg.Wait()
}

func server(b birth, wg *sync.WaitGroup, listener net.Listener) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	w := g.waits("io")
	conn, err := listener.Accept()
	w.over("netpoll")
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	var request [3]byte
	for i := 0; i < 2; i++ {
		w = g.waits("io")
		_, err = io.ReadFull(conn, request[:])
		w.over("netpoll")
		if err != nil {
			panic(err)
		}
		if _, err = conn.Write(request[:]); err != nil {
			panic(err)
		}
	}
	result(uint64(request[0]))
}

func client(b birth, wg *sync.WaitGroup, address string) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	// Connecting and reading the echo may or may not wait long enough to be reported.
	g.FreeWaits = true
	g.sleep(*nap)
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	var echo [3]byte
	for i := 0; i < 2; i++ {
		g.sleep(*nap)
		if _, err = conn.Write([]byte("abc")); err != nil {
			panic(err)
		}
		if _, err = io.ReadFull(conn, echo[:]); err != nil {
			panic(err)
		}
	}
	result(uint64(echo[2]))
}

// syscalls reads from a pipe in blocking mode, past the poller: the thread itself waits.
func syscalls(me *goroutine) {
	var wg sync.WaitGroup
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		panic(err)
	}
	wg.Add(1)
	b := me.forks()
	go pipeReader(b, &wg, fds[0])
	wg.Add(1)
	b = me.forks()
	go pipeWriter(b, &wg, fds[1])
	wg.Wait()
	syscall.Close(fds[0])
	syscall.Close(fds[1])
}

func pipeReader(b birth, wg *sync.WaitGroup, fd int) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	var one [1]byte
	for i := 0; i < 2; i++ {
		w := g.waits("syscall")
		n, err := syscall.Read(fd, one[:])
		w.over("")
		if n != 1 || err != nil {
			panic(err)
		}
		result(uint64(one[0]))
	}
}

func pipeWriter(b birth, wg *sync.WaitGroup, fd int) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	for i := 0; i < 2; i++ {
		g.sleep(*nap)
		if _, err := syscall.Write(fd, []byte{byte(i)}); err != nil {
			panic(err)
		}
	}
}
