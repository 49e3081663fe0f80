//go:build go1.23

package main

import (
	"iter"
	"time"
)

func init() {
	programs["pull"] = func() { pull(false) }   // iter.Pull without stop, four more a second
	programs["pull_ok"] = func() { pull(true) } // stopped
	programs["pull_kept"] = kept                // one that may go on
}

func pull(stopped bool) {
	for {
		next, stop := iter.Pull(count)
		next()
		if stopped {
			stop()
		}
		time.Sleep(250 * time.Millisecond)
	}
}

func count(yield func(int) bool) {
	for i := 0; yield(i); i++ {
	}
}

var going func() (string, bool)

func words(yield func(string) bool) {
	for yield("word") {
	}
}

func kept() {
	next, _ := iter.Pull(words)
	next()
	going = next
}
