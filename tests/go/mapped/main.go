// Command mapped maps the file that it is given, says where, and waits for the end of its input. What it waits in has
// some goroutines beside it. Without a file it is memory of no file, whose pages it is to supply itself when somebody
// touches them (userfaultfd), which it never does.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

//go:noinline
func parked(c chan int) { <-c }

func main() {
	for range make([]int, 20) {
		go parked(make(chan int))
	}
	memory, err := mapped()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(uintptr(unsafe.Pointer(&memory[0])))
	io.Copy(io.Discard, os.Stdin)
}

const size = 1 << 16

func mapped() ([]byte, error) {
	if len(os.Args) > 1 {
		file, err := os.Open(os.Args[1])
		if err != nil {
			return nil, err
		}
		return syscall.Mmap(int(file.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	}
	memory, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, err
	}
	return memory, supply(memory)
}

// supply has this process asked for the pages of some memory, by linux/userfaultfd.h.
func supply(memory []byte) error {
	number := map[string]uintptr{"amd64": 323, "arm64": 282}[runtime.GOARCH]
	fd, _, errno := syscall.Syscall(number, syscall.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return errno
	}
	api := [3]uint64{0xaa, 0, 0}
	const missing = 1
	register := [4]uint64{uint64(uintptr(unsafe.Pointer(&memory[0]))), size, missing, 0}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, 0xc018aa3f, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return errno
	}
	_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, 0xc020aa00, uintptr(unsafe.Pointer(&register)))
	if errno != 0 {
		return errno
	}
	return nil
}
