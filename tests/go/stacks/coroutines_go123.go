//go:build go1.23

package main

import "iter"

func init() {
	extras = append(extras, func() {
		next, stop := iter.Pull(func(yield func(int) bool) {
			for i := 0; yield(i); i++ {
			}
		})
		next()
		keep = append(keep, next, stop)
		inner, stopInner := iter.Pull(func(yield func(int) bool) {
			ready.Done()
			forever(make(chan int))
			yield(1)
		})
		// Waits within the coroutine, and its maker for it.
		spawn(func() { inner() })
		keep = append(keep, inner, stopInner)
	})
}
