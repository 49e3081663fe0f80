package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// memfd executes a copy of the program that has no name in any directory.
func memfd(words []string) error {
	bytes, err := os.ReadFile(words[0])
	if err != nil {
		return err
	}
	number := map[string]uintptr{"amd64": 319, "arm64": 279}[runtime.GOARCH]
	name := []byte("harm\x00")
	fd, _, errno := syscall.Syscall(number, uintptr(unsafe.Pointer(&name[0])), 0, 0)
	if errno != 0 {
		return errno
	}
	file := os.NewFile(fd, "harm")
	if _, err := file.Write(bytes); err != nil {
		return err
	}
	// By a descriptor that cannot write: a file that is open for writing is not executed.
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	reading, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err != nil {
		return err
	}
	file.Close()
	return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", reading), words, os.Environ())
}

// seccomp executes the program under a filter that ends who makes a system call that no program of Go
// makes: what the kernel puts in place of a probe may be one.
func seccomp(words []string) error {
	runtime.LockOSThread()
	const (
		load    = 0x20 // BPF_LD | BPF_W | BPF_ABS
		equals  = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
		ret     = 0x06 // BPF_RET | BPF_K
		allow   = 0x7fff0000
		kill    = 0x80000000
		noNew   = 38 // PR_SET_NO_NEW_PRIVS
		set     = 22 // PR_SET_SECCOMP
		filters = 2  // SECCOMP_MODE_FILTER
	)
	// uretprobe and uprobe of x86-64, which are none of arm64's.
	refused := []uint32{335, 336}
	if runtime.GOARCH != "amd64" {
		refused = []uint32{1000, 1001}
	}
	program := []syscall.SockFilter{
		{Code: load, K: 0},
		{Code: equals, K: refused[0], Jt: 1},
		{Code: equals, K: refused[1], Jf: 1},
		{Code: ret, K: kill},
		{Code: ret, K: allow},
	}
	filter := syscall.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, noNew, 1, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	_, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, set, filters, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return errno
	}
	return syscall.Exec(words[0], words, os.Environ())
}

// hold starts the program stopped, keeps it so for a while, and then passes on what comes to each of its
// threads, as a debugger does.
func hold(d time.Duration, words []string) error {
	runtime.LockOSThread()
	child := exec.Command(words[0], words[1:]...)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := child.Start(); err != nil {
		return err
	}
	pid := child.Process.Pid
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return err
	}
	options := syscall.PTRACE_O_TRACECLONE | syscall.PTRACE_O_TRACEEXEC
	if err := syscall.PtraceSetOptions(pid, options); err != nil {
		return err
	}
	time.Sleep(d)
	if err := syscall.PtraceCont(pid, 0); err != nil {
		return err
	}
	for {
		const everyThread = 0x40000000 // __WALL
		thread, err := syscall.Wait4(-1, &status, everyThread, nil)
		if err != nil {
			return err
		}
		if thread == pid && !status.Stopped() {
			if status.Signaled() || status.ExitStatus() != 0 {
				return fmt.Errorf("the program ended with %d, signal %d", status.ExitStatus(), status.Signal())
			}
			return nil
		}
		if !status.Stopped() {
			continue
		}
		signal := int(status.StopSignal())
		if status.TrapCause() > 0 || status.StopSignal() == syscall.SIGSTOP {
			// A new thread, or a program executed.
			signal = 0
		}
		// It may have been killed meanwhile, which is then what comes next.
		syscall.PtraceCont(thread, signal)
	}
}
