package sqlite_test

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/backend"
)

// value returns a kilobyte that differs each time: SQLite does not write a page
// whose bytes stay the same.
func value(n uint64) []byte {
	b := make([]byte, 1024)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], n*0x9e3779b97f4a7c15+uint64(i))
	}
	return b
}

// BenchmarkPut measures durable writes of a kilobyte; many writers share a sync.
func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			store := open(b, filepath.Join(b.TempDir(), "store.db"))
			var n atomic.Uint64
			b.SetParallelism(max(1, writers/2)) // times GOMAXPROCS
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := n.Add(1)
					op := backend.Op{Type: backend.OpPut, Item: backend.Item{Key: fmt.Sprintf("k/%05d", i*7919%20000), Value: value(i)}}
					if _, err := store.Batch(b.Context(), op); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// BenchmarkBatch measures batches of 100 from one writer.
func BenchmarkBatch(b *testing.B) {
	store := open(b, filepath.Join(b.TempDir(), "store.db"))
	n := uint64(0)
	for b.Loop() {
		ops := make([]backend.Op, 100)
		for i := range ops {
			n++
			ops[i] = backend.Op{Type: backend.OpPut, Item: backend.Item{Key: fmt.Sprintf("k/%05d", n*7919%20000), Value: value(n)}}
		}
		if _, err := store.Batch(b.Context(), ops...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "puts/s")
}

// BenchmarkGet measures reads, alone and while another goroutine writes.
func BenchmarkGet(b *testing.B) {
	for _, writing := range []bool{false, true} {
		b.Run(fmt.Sprintf("writing=%v", writing), func(b *testing.B) {
			store := open(b, filepath.Join(b.TempDir(), "store.db"))
			for i := range 20 {
				ops := make([]backend.Op, 100)
				for j := range ops {
					ops[j] = backend.Op{Type: backend.OpPut, Item: backend.Item{Key: fmt.Sprintf("k/%05d", i*100+j), Value: value(uint64(i*100 + j))}}
				}
				must(b, store, ops...)
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for i := uint64(0); writing; i++ {
					select {
					case <-stop:
						return
					default:
						must(b, store, backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "w", Value: value(i)}})
					}
				}
			}()
			var n atomic.Uint64
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := store.Get(b.Context(), fmt.Sprintf("k/%05d", n.Add(1)*7919%2000)); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.StopTimer()
			close(stop)
			<-stopped
		})
	}
}

// BenchmarkOpen measures opening a store with a full log of changes.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "store.db")
	store := open(b, path)
	for i := range 100 {
		ops := make([]backend.Op, 100)
		for j := range ops {
			ops[j] = backend.Op{Type: backend.OpPut, Item: backend.Item{Key: fmt.Sprintf("k/%05d", i*100+j), Value: value(uint64(i))[:300]}}
		}
		must(b, store, ops...)
	}
	closeIt(b, store)
	for b.Loop() {
		closeIt(b, open(b, path))
	}
}

// BenchmarkCreate measures what comes as audit events do: batches of new keys that end in
// a random part and grow otherwise.
func BenchmarkCreate(b *testing.B) {
	for _, size := range []int{1, 10, 100, 500} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			store := open(b, filepath.Join(b.TempDir(), "store.db"))
			n := uint64(0)
			cpu := cpuTime()
			for b.Loop() {
				ops := make([]backend.Op, size)
				for i := range ops {
					n++
					ops[i] = backend.Op{Type: backend.OpCreate, Item: backend.Item{
						Key:   fmt.Sprintf("audit/20260102T030405.%09dZ/7c9a2d7e-58a6-4e0e-8f6b-%012x", n*1000, n*0x9e3779b97f4a7c15>>16),
						Value: value(n)[:450], Expires: time.Now().Add(365 * 24 * time.Hour),
					}}
				}
				if _, err := store.Batch(b.Context(), ops...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(n), "cpu-us/item")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/item")
		})
	}
}

// cpuTime is the CPU time of this process.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
