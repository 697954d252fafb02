package dir

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// openUnnamed makes a temporary file that has no name, so that nothing of it is
// left when the process is killed. Not every file system has them.
func openUnnamed(root *os.Root) (*os.File, error) {
	f, err := root.OpenFile(incoming, os.O_WRONLY|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(descriptor(f)); err != nil { // it is given a name by this path
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func descriptor(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// linkUnnamed gives it its name.
func linkUnnamed(root *os.Root, f *os.File, name string) error {
	folder, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := unix.Linkat(unix.AT_FDCWD, descriptor(f), int(folder.Fd()), path.Base(name), unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "linkat", Old: "temporary file", New: name, Err: err}
	}
	return nil
}
