package clock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/testenv"
)

// launcher is the first argument of this program where it only starts another.
const launcher = "holdfast-moved-clock"

func init() {
	if len(os.Args) > 3 && os.Args[1] == launcher {
		runtime.LockOSThread() // the filter, the tracing and the parent's death are the thread's
		code, err := launch(os.Args[2], os.Args[3:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "start with a moved clock:", err)
			code = 1
		}
		os.Exit(code)
	}
}

// Clock is the wall clock of the programs that were started with its prefix.
type Clock struct {
	offset atomic.Int64 // nanoseconds
	socket string
	listen *net.UnixListener
	work   sync.WaitGroup
	stop   chan struct{}
}

// New makes a clock that is right until it is moved. The test ends it, after the
// programs.
func New(t testing.TB) *Clock {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		testenv.Lack(t, "clocks are moved on amd64 only")
	}
	dir, err := os.MkdirTemp("", "hf-clock-")
	if err != nil {
		t.Fatal(err)
	}
	c := &Clock{socket: filepath.Join(dir, "s"), stop: make(chan struct{})}
	if c.listen, err = net.ListenUnix("unix", &net.UnixAddr{Name: c.socket, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	c.work.Go(c.accept)
	t.Cleanup(func() {
		close(c.stop)
		_ = c.listen.Close()
		c.work.Wait()
		_ = os.RemoveAll(dir)
	})
	return c
}

// Prefix goes before the command of a program.
func (c *Clock) Prefix() []string {
	self, err := os.Executable()
	if err != nil {
		panic(err) // /proc is not mounted
	}
	return []string{self, launcher, c.socket}
}

// Move moves the clock, from where it is.
func (c *Clock) Move(d time.Duration) { c.offset.Add(int64(d)) }

// Now is what the programs see.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }

func (c *Clock) accept() {
	for {
		conn, err := c.listen.AcceptUnix()
		if err != nil {
			return
		}
		file, err := receive(conn)
		_ = conn.Close()
		if err != nil {
			fmt.Fprintln(os.Stderr, "moved clock:", err)
			continue
		}
		c.work.Go(func() { c.answer(file) })
	}
}

// receive takes the one file that a launcher sends.
func receive(conn *net.UnixConn) (int, error) {
	one, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(one, oob)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return 0, errors.Join(err, errors.New("no file came"))
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) != 1 {
		return 0, errors.Join(err, errors.New("no file came"))
	}
	return files[0], nil
}

// Of linux/seccomp.h.
const (
	notifyReceive  = 0xc0502100
	notifySend     = 0xc0182101
	notifySize     = 80 // struct seccomp_notif
	answerSize     = 24 // struct seccomp_notif_resp
	newListener    = 1 << 3
	setModeFilter  = 1
	retNotify      = 0x7fc00000
	retAllow       = 0x7fff0000
	answerContinue = 1
	pollWait       = 200 // milliseconds, after which the end of the test is looked at
)

// answer tells the programs behind one file what time it is, until they have
// ended.
func (c *Clock) answer(fd int) {
	defer unix.Close(fd)
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, pollWait)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil, poll[0].Revents&unix.POLLHUP != 0:
			return
		case n == 0:
			select {
			case <-c.stop:
				return
			default:
				continue
			}
		}
		var asked [notifySize]byte
		if ioctl(fd, notifyReceive, unsafe.Pointer(&asked)) != nil {
			continue // the caller is gone
		}
		var told [answerSize]byte
		copy(told[:8], asked[:8])
		if !c.tell(int(binary.NativeEndian.Uint32(asked[8:])), uintptr(binary.NativeEndian.Uint64(asked[40:]))) {
			binary.NativeEndian.PutUint32(told[20:], answerContinue)
		}
		_ = ioctl(fd, notifySend, unsafe.Pointer(&told))
	}
}

// tell writes the time into a program, which waits for it; false leaves that to
// the kernel.
func (c *Clock) tell(pid int, at uintptr) bool {
	if c.offset.Load() == 0 {
		return false
	}
	now := c.Now()
	var spec [16]byte
	binary.NativeEndian.PutUint64(spec[:], uint64(now.Unix()))
	binary.NativeEndian.PutUint64(spec[8:], uint64(now.Nanosecond()))
	local := []unix.Iovec{{Base: &spec[0], Len: 16}}
	n, err := unix.ProcessVMWritev(pid, local, []unix.RemoteIovec{{Base: at, Len: 16}}, 0)
	return err == nil && n == 16
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// launch starts a program under the filter, and ends with it.
func launch(socket string, command []string) (code int, err error) {
	// The file must not be the program's, or it would answer itself.
	listener, err := filter()
	if err != nil {
		return 0, err
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte{0}, unix.UnixRights(listener), nil); err != nil {
		return 0, err
	}
	_ = conn.Close()
	_ = unix.Close(listener)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	pid, err := syscall.ForkExec(command[0], command, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}})
	if err != nil {
		return 0, err
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		return 0, fmt.Errorf("wait for the program's start: %w, status %x", err, status)
	}
	if err := hideVDSO(pid); err != nil {
		return 0, errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
	}
	if err := syscall.PtraceDetach(pid); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = syscall.Kill(pid, s.(syscall.Signal)) // it may have ended
		}
	}()
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, err
		case status.Exited():
			return status.ExitStatus(), nil
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		}
	}
}

// filter has this thread, and what it starts, ask for the time. The kernel's
// other answers stay what they are.
func filter() (listener int, err error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 4}, // architecture
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AUDIT_ARCH_X86_64, Jf: 5},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CLOCK_GETTIME, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16}, // which clock
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.CLOCK_REALTIME, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: retNotify},
		{Code: unix.BPF_RET | unix.BPF_K, K: retAllow},
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, newListener, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return 0, fmt.Errorf("install the filter: %w", errno)
	}
	return int(fd), nil
}

// Types of the auxiliary vector.
const (
	auxNull   = 0
	auxIgnore = 1
	auxVDSO   = 33
)

// hideVDSO takes the page with the kernel's own clock out of what a stopped
// program is told at its start. Its stack has the number of arguments, the
// arguments and a zero, the environment and a zero, and pairs of type and value.
func hideVDSO(pid int) error {
	var regs syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
		return fmt.Errorf("read the program's registers: %w", err)
	}
	at := uintptr(regs.Rsp)
	word := func() (uint64, error) {
		var b [8]byte
		if _, err := syscall.PtracePeekData(pid, at, b[:]); err != nil {
			return 0, fmt.Errorf("read the program's stack: %w", err)
		}
		at += 8
		return binary.NativeEndian.Uint64(b[:]), nil
	}
	if _, err := word(); err != nil {
		return err
	}
	for zeroes := 0; zeroes < 2; {
		w, err := word()
		if err != nil {
			return err
		}
		if w == 0 {
			zeroes++
		}
	}
	for {
		kind, err := word()
		switch {
		case err != nil:
			return err
		case kind == auxNull:
			return nil // there is none
		case kind == auxVDSO:
			var ignore [8]byte
			binary.NativeEndian.PutUint64(ignore[:], auxIgnore)
			_, err := syscall.PtracePokeData(pid, at-8, ignore[:])
			return err
		}
		at += 8
	}
}
