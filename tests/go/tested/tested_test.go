package tested

import "testing"

func TestSum(t *testing.T) {
	if got := Sum(5); got != 10 {
		t.Fatalf("got %d", got)
	}
}
