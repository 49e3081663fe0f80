//go:build !cgo

package main

const withCgo = false

func cgoCalls(*goroutine) {}
