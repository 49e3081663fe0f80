package leftbehind

import (
	"os"
	"testing"
	"time"
)

func leaking(t *testing.T) {
	if os.Getenv("LEAK") == "" {
		t.Skip("LEAK is not set")
	}
}

func TestClosed(t *testing.T) {
	for i := 0; i < 50; i++ {
		s := Start()
		s.requests <- 1
		s.Close()
	}
}

// The worker is not told to end; the name of the test is in no goroutine's creation site.
func TestForgottenClose(t *testing.T) {
	leaking(t)
	s := startForTest()
	time.Sleep(20 * time.Millisecond)
	s.requests <- 1
}

//go:noinline
func startForTest() *Server { return Start() }

func TestForgottenPoll(t *testing.T) {
	leaking(t)
	t.Run("subtest", func(t *testing.T) {
		go Poll()
		time.Sleep(300 * time.Millisecond)
	})
}

func TestLast(t *testing.T) {
	time.Sleep(300 * time.Millisecond)
	TestClosed(t)
}
