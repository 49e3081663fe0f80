//go:build cgo

package main

/*
#include <pthread.h>
#include <unistd.h>

extern void parkInGo(void);

static void callBack(void) { parkInGo(); }

static void *thread(void *unused) {
	parkInGo();
	return unused;
}

static void startThread(void) {
	pthread_t t;
	pthread_create(&t, 0, thread, 0);
}

static void sleepInC(void) {
	for (;;) {
		pause();
	}
}
*/
import "C"

//export parkInGo
func parkInGo() {
	ready.Done()
	forever(make(chan int))
}

func init() {
	extras = append(extras, func() {
		spawn(func() { C.callBack() })
		ready.Add(1)
		C.startThread()
		spawn(func() { ready.Done(); C.sleepInC() })
	})
}
