package image

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// writeBack asks the kernel to start writing a range. It is only a hint.
func writeBack(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

func punch(f *os.File, off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// openDirect opens a file again, past the page cache; nil where that is not to
// be had. It goes by the descriptor: the name may be another's by now.
func openDirect(f *os.File) *os.File {
	direct, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil
	}
	return direct
}
