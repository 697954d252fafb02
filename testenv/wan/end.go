package wan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/testenv"
)

const (
	tunPath    = "/dev/net/tun"
	deviceName = "wan"
	// ring is how many packets of its kernel wait for this program. What does not
	// fit is lost, so it holds the bursts of many connections.
	ring = 32768
)

// Possible says what keeps this machine from laying lines.
func Possible() error {
	f, err := os.OpenFile(tunPath, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("lines need %s and root: %w", tunPath, err)
	}
	return f.Close()
}

type addresses struct{ own, other, own6, other6 string }

// End is one end of a line: a network namespace with loopback, the line, and
// nothing else.
type End struct {
	Name      string
	Address   netip.Addr // of this end, as the other one knows it
	Address6  netip.Addr
	namespace *os.File
	device    *os.File // the line's
	statistic *os.File // how many packets the kernel dropped before this program took them
}

// newEnd makes a namespace with its end of the line.
func newEnd(name string, a addresses, mtu int) (*End, error) {
	e := &End{Name: name, Address: netip.MustParseAddr(a.own), Address6: netip.MustParseAddr(a.own6)}
	made := make(chan error, 1)
	go func() {
		// The thread is in another namespace from here on, so it ends with this
		// goroutine: nobody else may run on it.
		runtime.LockOSThread()
		made <- e.make(a, mtu)
	}()
	if err := <-made; err != nil {
		return nil, errors.Join(fmt.Errorf("end of the %s: %w", name, err), e.close())
	}
	return e, nil
}

func (e *End) make(a addresses, mtu int) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	if e.namespace, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	if e.device, err = openTUN(); err != nil {
		return err
	}
	for _, command := range []string{
		"link set lo up",
		fmt.Sprintf("link set %s mtu %d txqueuelen %d", deviceName, mtu, ring),
		fmt.Sprintf("addr add %s peer %s dev %s", a.own, a.other, deviceName),
		fmt.Sprintf("addr add %s peer %s dev %s nodad", a.own6, a.other6, deviceName),
		fmt.Sprintf("link set %s up", deviceName),
	} {
		if err := ip(command); err != nil {
			return err
		}
	}
	if err := chooseCongestion(); err != nil {
		return err
	}
	// Seen by this thread only, which has a mount namespace of its own.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("wan", "/sys", "sysfs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount /sys of the namespace: %w", err)
	}
	e.statistic, err = os.Open("/sys/class/net/" + deviceName + "/statistics/tx_dropped")
	return err
}

// congestion is how TCP at both ends finds out what the line carries: what Linux
// does unless somebody chose otherwise, so that results of one machine are those
// of another.
const congestion = "cubic"

// allowCongestion lets namespaces have it: on a machine with another default
// they may not. It is for the whole machine, and changes nothing for anybody who
// does not ask.
func allowCongestion() error {
	const allowed = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
	list, err := os.ReadFile(allowed)
	if err == nil && !slices.Contains(strings.Fields(string(list)), congestion) {
		err = os.WriteFile(allowed, []byte(strings.TrimSpace(string(list))+" "+congestion), 0)
	}
	if err != nil {
		return fmt.Errorf("allow TCP's congestion control %s: %w", congestion, err)
	}
	return nil
}

// chooseCongestion sets it for this thread's namespace.
func chooseCongestion() error {
	const setting = "/proc/sys/net/ipv4/tcp_congestion_control" // of the namespace of who opens it
	if err := os.WriteFile(setting, []byte(congestion), 0); err != nil {
		return fmt.Errorf("choose TCP's congestion control: %w", err)
	}
	return nil
}

func openTUN() (*os.File, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunPath, err)
	}
	request, err := unix.NewIfreq(deviceName)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, errors.Join(fmt.Errorf("make a TUN device: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), tunPath), nil
}

// ip runs the command in this thread's namespace.
func ip(command string) error {
	path, ok := testenv.FindTool("ip")
	if !ok {
		return errors.New("ip is missing: testenv/setup.sh test installs it")
	}
	if out, err := exec.Command(path, strings.Fields(command)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", command, err, bytes.TrimSpace(out))
	}
	return nil
}

func (e *End) close() error {
	var failures []error
	for _, f := range []*os.File{e.device, e.statistic, e.namespace} {
		if f != nil {
			failures = append(failures, f.Close())
		}
	}
	return errors.Join(failures...)
}

// Prefix is what a command begins with that runs at this end, such as
// stack.Options has. It is good for as long as the line is open.
func (e *End) Prefix() []string {
	return []string{"nsenter", "--net=" + fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), e.namespace.Fd())}
}

// AddressPort is the end's address with a port.
func (e *End) AddressPort(port int) string {
	return net.JoinHostPort(e.Address.String(), strconv.Itoa(port))
}

// Inside runs a function whose thread is in the end's namespace: sockets that
// the function itself makes are there for good, and so are processes that it
// starts. What it does on other goroutines is not.
func (e *End) Inside(work func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with this goroutine
		if err := unix.Setns(int(e.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network of the %s: %w", e.Name, err)
			return
		}
		done <- work()
	}()
	return <-done
}

// Listen listens at this end, at a free port.
func (e *End) Listen() (listener net.Listener, err error) {
	err = e.Inside(func() error {
		listener, err = net.Listen("tcp", e.AddressPort(0))
		return err
	})
	return listener, err
}

// ListenPacket is Listen for UDP.
func (e *End) ListenPacket() (conn net.PacketConn, err error) {
	err = e.Inside(func() error {
		conn, err = net.ListenPacket("udp", e.AddressPort(0))
		return err
	})
	return conn, err
}

// Dial connects from this end to an address, HOST:PORT, where HOST is an IP
// address. It has the form that net/http and gateway.Options want.
func (e *End) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	err = e.Inside(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// overrun is how many packets the kernel dropped because this program did not
// take them in time.
func (e *End) overrun() int64 {
	var text [32]byte
	n, err := e.statistic.ReadAt(text[:], 0)
	if err != nil && n == 0 {
		return 0
	}
	count, err := strconv.ParseInt(strings.TrimSpace(string(text[:n])), 10, 64)
	if err != nil {
		return 0
	}
	return count
}
