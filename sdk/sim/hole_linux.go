package sim

import (
	"errors"
	"os"
	"syscall"
)

// What lseek and fallocate call these; package syscall does not name them.
const (
	seekData  = 3
	seekHole  = 4
	punchHole = 0x02 | 0x01 // FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
)

// punch makes a hole, where the file system can.
func punch(f *os.File, off, n int64) (done bool, err error) {
	err = syscall.Fallocate(int(f.Fd()), punchHole, off, n)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}
