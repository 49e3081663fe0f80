//go:build big

package main

// blob makes the file one that takes long to read.
var blob = [60 << 20]byte{1, 60<<20 - 1: 1}

func init() { size = len(blob) + int(blob[0]) }
