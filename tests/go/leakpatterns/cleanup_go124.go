//go:build go1.24

package main

import "runtime"

// The cleanup's argument holds it, and the runtime holds the argument.
func byCleanup(wake func()) {
	o := new(object)
	runtime.AddCleanup(o, func(f *func()) { (*f)() }, &wake)
	objects = append(objects, o)
	n := len(objects) - 1
	later(func() { objects[n] = nil })
}
