package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	dirPrefix = "hf-demo-"
	lockName  = "lock"
)

// directory is where everything of a demo lies. The kernel holds its lock for
// as long as the demo lives, so whoever gets the lock knows that the demo is
// dead.
type directory struct {
	path string
	lock *os.File
}

// newDirectory makes one, after removing those of dead demos.
func newDirectory() (*directory, error) {
	if err := removeDead(); err != nil {
		return nil, fmt.Errorf("remove what a dead demo left: %w", err)
	}
	path, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	return &directory{path: path, lock: lock}, err
}

// remove ends the directory's existence.
func (d *directory) remove() error {
	return errors.Join(os.RemoveAll(d.path), d.lock.Close())
}

// removeDead removes the directories of this user's demos that were killed.
func removeDead() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
		if err != nil {
			continue // one that starts
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.RemoveAll(dir)
		}
		if err := errors.Join(err, lock.Close()); err != nil {
			return err
		}
	}
	return nil
}
