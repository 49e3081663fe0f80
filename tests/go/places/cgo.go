package main

// #include <unistd.h>
import "C"

//go:noinline
func inC() { C.sleep(600) }

func cgo() { go inC() }
