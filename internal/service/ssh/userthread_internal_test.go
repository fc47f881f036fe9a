package ssh

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestOnlyOneThreadChanges looks at every thread of the process while one of them acts
// as somebody else, and afterwards.
func TestOnlyOneThreadChanges(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else to become
	}
	cred := &syscall.Credential{Uid: 12345, Gid: 12346, Groups: []uint32{12347}}
	changed := func() (n int) {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
			if err != nil {
				continue // it has ended
			}
			if strings.Contains(string(b), "\nUid:\t0\t12345\t0\t12345\n") {
				n++
			} else if !strings.Contains(string(b), "\nUid:\t0\t0\t0\t0\n") {
				t.Errorf("a thread of other ids: %s", b)
			}
		}
		return n
	}
	inside, leave := make(chan struct{}), make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		err := actAs(cred, func() error {
			close(inside)
			<-leave
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-inside
	if n := changed(); n != 1 {
		t.Errorf("%d threads have the user's ids, want 1", n)
	}
	for range 50 {
		work.Go(func() {
			if err := actAs(cred, func() error { _, err := os.ReadFile("/proc/self/environ"); _ = err; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	close(leave)
	work.Wait()
	// A thread takes a moment to end.
	for try := 0; changed() != 0; try++ {
		if try == 1000 {
			t.Fatal("a thread kept the user's ids")
		}
	}
}
