//go:build go1.24 && !go1.25

package main

// One goroutine runs finalizers and cleanups.
func blockAllCleanups() { blockAllFinalizers() }
