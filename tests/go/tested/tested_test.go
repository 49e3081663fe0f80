package tested

import (
	"testing"
	"time"
)

func TestSum(t *testing.T) {
	// A child is traced from a little after its start: what ends before that is not seen.
	time.Sleep(2 * time.Second)
	if got := Sum(5); got != 10 {
		t.Fatalf("got %d", got)
	}
}
