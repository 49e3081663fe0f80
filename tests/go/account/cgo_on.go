//go:build cgo

package main

/*
#include <pthread.h>
#include <time.h>

extern void calledFromC(long long);

static void nap_c(long long ns) {
	struct timespec t = { ns / 1000000000, ns % 1000000000 };
	nanosleep(&t, 0);
}

static void *thread(void *arg) {
	calledFromC((long long)(size_t)arg);
	return 0;
}

static int callFromThread(long long arg) {
	pthread_t t;
	if (pthread_create(&t, 0, thread, (void *)(size_t)arg)) return 1;
	return pthread_join(t, 0);
}
*/
import "C"

import "sync"

const withCgo = true

// cgoCalls waits in C, which counts as a system call, and is called back from a thread that C made:
// the goroutine which serves such a call has neither birth nor exit.
func cgoCalls(me *goroutine) {
	var wg sync.WaitGroup
	wg.Add(1)
	b := me.forks()
	go inC(b, &wg)
	wg.Wait()
	wg.Add(1)
	b = me.forks()
	go fromC(b, &wg)
	wg.Wait()
}

func inC(b birth, wg *sync.WaitGroup) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	w := g.waits("syscall")
	C.nap_c(C.longlong((*nap).Nanoseconds()))
	w.over("")
	result(13)
}

func fromC(b birth, wg *sync.WaitGroup) {
	g := b.begin()
	defer g.end()
	defer wg.Done()
	w := g.waits("syscall")
	if C.callFromThread(C.longlong(14)) != 0 {
		panic("no thread")
	}
	w.over("")
}
