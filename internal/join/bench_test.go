package join_test

import (
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/join"
	"teleport/internal/types"
)

// BenchmarkJoin is a whole join, both ends in one process, with many locks that are
// about others.
func BenchmarkJoin(b *testing.B) {
	f := newFixture(b)
	f.token(secret)
	tx := f.store.Tx()
	for range 1000 {
		tx.Create(types.NewLock(&typesv1.LockTarget{ServerId: "another"}, "", "admin", time.Now(), time.Time{}))
	}
	check(b, tx.Commit(b.Context()))
	params := f.params()
	b.ReportAllocs()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := join.Join(b.Context(), params); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
