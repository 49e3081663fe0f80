// Package tested has a test which starts five goroutines; gotrace follows `go test` into it.
package tested

import "sync"

// Sum adds up 0 to n-1, a goroutine each.
func Sum(n int) int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	total := 0
	wg.Add(n)
	for i := 0; i < n; i++ {
		go worker(&mu, &wg, &total, i)
	}
	wg.Wait()
	return total
}

func worker(mu *sync.Mutex, wg *sync.WaitGroup, total *int, i int) {
	defer wg.Done()
	mu.Lock()
	*total += i
	mu.Unlock()
}
