// frames tells what the Go runtime itself says of program counters: the judge of gotrace's own reading of
// the function table.
//
// Without arguments it prints, for several call chains with inlined calls, the return address that stands on
// the stack and the logical frames that it stands for, innermost first:
//
//	chain 0x4a1234
//	main.small	/src/main.go	31
//
// With the argument "lookup" it reads addresses in hexadecimal, one a line, and prints function, file and
// line of the innermost frame of each.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

//go:noinline
func here(outermost string) int {
	var pcs [64]uintptr
	n := runtime.Callers(1, pcs[:])
	// The first one is in this function, the second the return address in the caller.
	fmt.Printf("chain %#x\n", pcs[1])
	frames := runtime.CallersFrames(pcs[1:n])
	for {
		f, more := frames.Next()
		fmt.Printf("%s\t%s\t%d\n", f.Function, f.File, f.Line)
		if !more || strings.HasSuffix(f.Function, outermost) {
			return n
		}
	}
}

func innermost(outermost string) int { return here(outermost) + 1 }

func middle(outermost string) int {
	if len(os.Args) > 5 {
		return 0
	}
	return innermost(outermost) + 2
}

//go:noinline
func plainChain() int { return here(".plainChain") }

//go:noinline
func inlinedChain() int { return middle(".inlinedChain") * 3 }

type number interface{ ~int | ~float64 }

//go:noinline
func genericChain[T number](x T) T {
	middle(".genericChain[...]")
	return x + 1
}

type value struct{ n int }

//go:noinline
func (v value) methodChain() int { return v.n + innermost(".methodChain") }

type chainer interface{ methodChain() int }

func lookup() {
	in := bufio.NewScanner(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		pc, err := strconv.ParseUint(strings.TrimPrefix(in.Text(), "0x"), 16, 64)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		f := runtime.FuncForPC(uintptr(pc))
		if f == nil {
			fmt.Fprintln(out, "?\t\t0")
			continue
		}
		file, line := f.FileLine(uintptr(pc))
		fmt.Fprintf(out, "%s\t%s\t%d\n", f.Name(), file, line)
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "lookup" {
		lookup()
		return
	}
	plainChain()
	inlinedChain()
	genericChain(1)
	genericChain(1.5)
	var c chainer = &value{4}
	c.methodChain()
	func() { innermost(".main") }()
	done := make(chan int)
	go func() { done <- middle(".func2") }()
	<-done
}
