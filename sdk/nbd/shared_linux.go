package nbd

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const memoryPossible = true

// seals keep anybody from changing the size of the file, and from taking that
// back: who touches a mapping beyond its file dies of it.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// newShared makes memory and the file to share it by.
func newShared() (_ *sharedMemory, _ *os.File, err error) {
	fd, err := unix.MemfdCreate("nbd", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, memoryError(err)
	}
	file := os.NewFile(uintptr(fd), "nbd memory")
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	// All of it is allocated now: what lacks later would be no error but a signal.
	if err := unix.Fallocate(fd, 0, 0, memorySize); err != nil {
		return nil, nil, memoryError(err)
	}
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, nil, memoryError(err)
	}
	b, err := unix.Mmap(fd, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, memoryError(err)
	}
	return &sharedMemory{bytes: b}, file, nil
}

// openShared maps what a server has sent, to read. It has to be ordinary memory,
// whose pages are there when they are touched, of a size that cannot change.
func openShared(file *os.File) (*sharedMemory, error) {
	var stat unix.Stat_t
	var system unix.Statfs_t
	fd := int(file.Fd())
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, memoryError(err)
	}
	if err := unix.Fstatfs(fd, &system); err != nil {
		return nil, memoryError(err)
	}
	sealed, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || sealed&seals != seals || stat.Size != memorySize || system.Type != unix.TMPFS_MAGIC {
		return nil, violated("memory of %d bytes, with seals %#x, on file system %#x", stat.Size, sealed, system.Type)
	}
	b, err := unix.Mmap(fd, 0, memorySize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, memoryError(err)
	}
	return &sharedMemory{bytes: b}, nil
}

func (m *sharedMemory) close() {
	if m != nil {
		_ = unix.Munmap(m.bytes) // what was mapped can be unmapped
		m.bytes = nil
	}
}

// sendFile sends a message with an open file.
func sendFile(socket *net.UnixConn, message []byte, file *os.File) error {
	n, _, err := socket.WriteMsgUnix(message, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && n < len(message) {
		_, err = socket.Write(message[n:])
	}
	return err
}

// receiveFile reads at most n bytes, and the file that came with them, if any.
func receiveFile(socket *net.UnixConn, n int) (*os.File, []byte, error) {
	b, control := make([]byte, n), make([]byte, unix.CmsgSpace(4))
	got, length, _, _, err := socket.ReadMsgUnix(b, control)
	if err != nil {
		return nil, nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(control[:length])
	if err != nil {
		return nil, nil, violated("control message: %v", err)
	}
	if len(messages) == 0 {
		return nil, b[:got], nil
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 { // there was room for one
		return nil, nil, violated("control message without a file: %v", err)
	}
	return os.NewFile(uintptr(fds[0]), "file of an nbd server"), b[:got], nil
}
