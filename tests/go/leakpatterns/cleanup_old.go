//go:build !go1.24

package main

// There are no cleanups.
func byCleanup(wake func()) { byFinalizer(wake) }

func byQueuedCleanup(wake func()) { byQueuedFinalizer(wake) }
