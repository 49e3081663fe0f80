package quick

import (
	"os"
	"testing"
	"time"
)

// Two workers are left behind, a millisecond after they began to wait.
func TestForgottenPool(t *testing.T) {
	if os.Getenv("LEAK") == "" {
		t.Skip("LEAK is not set")
	}
	NewPool(2)
	time.Sleep(time.Millisecond)
}

// The workers are told to end, and may not have done so when the program exits.
func TestClosedPool(t *testing.T) {
	p := NewPool(2)
	time.Sleep(time.Millisecond)
	p.Close()
}

// It would end by itself.
func TestNap(t *testing.T) {
	go time.Sleep(20 * time.Millisecond)
}
