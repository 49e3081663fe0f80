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

// Nothing but the runtime's queue holds it: as many cleanups as are run at once wait until all are let go.
func byQueuedCleanup(wake func()) {
	blockAllCleanups()
	cleanUp(wake)
}

//go:noinline
func cleanUp(wake func()) {
	runtime.AddCleanup(new(object), func(f *func()) { (*f)() }, &wake)
}
