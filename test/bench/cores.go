package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// cores are the two that a server and those who put load on it do not share.
type cores struct{ server, load unix.CPUSet }

// twoCores returns two of the cores that this program may use.
func twoCores() (*cores, error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, err
	}
	if all.Count() < 2 {
		return nil, fmt.Errorf("this program may use %d cores: it takes two to tell a server from its load", all.Count())
	}
	c := &cores{}
	for i := 0; c.load.Count() == 0; i++ {
		switch {
		case !all.IsSet(i):
		case c.server.Count() == 0:
			c.server.Set(i)
		default:
			c.load.Set(i)
		}
	}
	return c, nil
}

// onServer runs do; the processes that it starts have the server's core only, and
// behave as on a machine of one core.
func (c *cores) onServer(do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, &c.server); err != nil {
		return err
	}
	defer unix.SchedSetaffinity(0, &before)
	return do()
}

// aside moves this program to the core of the load, until the function that it
// returns is called.
func (c *cores) aside() (back func(), err error) {
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, err
	}
	if err := everyThread(&c.load); err != nil {
		return nil, err
	}
	width := runtime.GOMAXPROCS(c.load.Count())
	return func() {
		runtime.GOMAXPROCS(width)
		_ = everyThread(&before)
	}, nil
}

// everyThread sets the cores of each thread of this program; new ones get those of
// the thread that makes them.
func everyThread(set *unix.CPUSet) error {
	for range 2 { // a thread may have been made meanwhile
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(tid, set); err != nil && err != unix.ESRCH {
				return fmt.Errorf("thread %d: %w", tid, err)
			}
		}
	}
	return nil
}
