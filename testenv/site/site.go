package site

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/testenv"
)

// Tools are the programs that a site runs, for testenv.Need.
var Tools = []string{"libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "ip"}

// Options say what site to start. The zero value is a site that is reached by unix socket alone.
type Options struct {
	Dir string // "" is a new directory under the system's temporary one, removed by Close
	// Remote puts listeners for TCP and TLS on an address of the site's own network namespace, and certificates for
	// libvirt and for NBD where libvirt looks for them. It needs root.
	Remote bool
	// Detach lets the site outlive this program. It is found again with Open.
	Detach bool
	// NoTurn starts the site also while another program has sites, and keeps none of them waiting: for what a person looks
	// at, which may take as long as the person likes.
	NoTurn bool
}

// The names of what every site has.
const (
	Pool       = "default" // storage pools, both directories
	SecondPool = "second"
	Production = "production" // networks, both bridges without a way out; they need root
	Recovery   = "recovery"
)

// Site is a running libvirt host.
type Site struct {
	Dir     string
	URI     string   // by unix socket, as libvirt's own tools understand it
	Socket  string   // the unix socket
	TCPURI  string   // Remote only; without authentication or encryption
	TLSURI  string   // Remote only
	Address string   // Remote only: of the host, for NBD
	PKI     PKI      // Remote only
	Nets    []string // libvirt networks
	System  bool     // a system libvirtd, not a session one
	Accel   Accel
	Boot    int    // process id of the site's first process
	Started uint64 // its start time in the kernel's ticks: a process id alone may be reused
	Owner   int    // process id of the program that the site ends with; 0 if detached

	release func()
	done    chan struct{} // closed when the first process has ended; nil in a site that Open found
}

const (
	// Measured: 8 s without the capability cache, 0.2 s with it, and over 60 s on two cores under a load of 20.
	startLimit = 3 * time.Minute
	stateFile  = "site.json"
	dirPrefix  = "hfsite-"
)

// Start starts a site. Sites that dead programs left are removed first.
func Start(ctx context.Context, o Options) (*Site, error) {
	release, err := takeTurn(ctx, o.Detach || o.NoTurn)
	if err != nil {
		return nil, err
	}
	s := &Site{Dir: o.Dir, System: os.Geteuid() == 0, release: release}
	if !o.Detach {
		s.Owner = os.Getpid()
	}
	if err := s.start(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start a libvirt site: %w", err), s.Close())
	}
	return s, nil
}

func (s *Site) start(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if o.Remote && !s.System {
		return errors.New("listeners need root")
	}
	if err := removeStale(); err != nil {
		return err
	}
	if err := s.layOut(); err != nil {
		return err
	}
	accel, err := FindAccel(ctx)
	if err != nil {
		return err
	}
	s.Accel = accel
	plan := bootPlan{Dir: s.Dir, System: s.System, Detach: o.Detach}
	if plan.Libvirtd, err = tool("libvirtd"); err != nil {
		return err
	}
	if o.Remote {
		if plan.Link, err = freeLink(); err != nil {
			return err
		}
		s.Address = plan.Link.Site
		if s.PKI, err = NewPKI(s.Address); err != nil {
			return err
		}
	}
	if err := s.configure(o); err != nil {
		return err
	}
	loadCapabilities(s.path("cache"))
	if err := s.boot(ctx, plan); err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	if err := s.awaitDaemon(ctx); err != nil {
		return err
	}
	saveCapabilities(s.path("cache"))
	if err := s.makePools(ctx); err != nil {
		return err
	}
	if err := s.makeNetworks(ctx); err != nil {
		return err
	}
	return s.save()
}

// layOut makes the directories. Their paths are short, since a unix socket's may have 107 bytes, and a session libvirtd
// puts those of its guests 85 bytes below.
func (s *Site) layOut() error {
	if s.Dir == "" {
		dir := filepath.Join(os.TempDir(), dirPrefix+strings.ToLower(rand.Text()[:6]))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		s.Dir = dir
	}
	for _, sub := range []string{"etc", "run", "lib", "cache", "log", "pki", Pool, SecondPool, "scratch"} {
		if err := os.MkdirAll(s.path(sub), 0o755); err != nil {
			return err
		}
	}
	if s.System {
		s.Socket = s.path("run", "libvirt-sock")
		s.URI = "qemu+unix:///system?socket=" + s.Socket
	} else {
		s.Socket = s.path("run", "libvirt", "libvirt-sock")
		s.URI = "qemu+unix:///session?socket=" + s.Socket
	}
	return nil
}

func (s *Site) path(elem ...string) string { return filepath.Join(append([]string{s.Dir}, elem...)...) }

// PoolDir is the directory of a pool.
func (s *Site) PoolDir(pool string) string { return s.path(pool) }

// Scratch is a directory that QEMU and this program both reach, for sockets and scratch files.
func (s *Site) Scratch() string { return s.path("scratch") }

// NBDCertificates is the directory with the certificates that QEMU's NBD servers use.
func (s *Site) NBDCertificates() string { return s.path("pki") }

// save makes the site known to Open and to removeStale.
func (s *Site) save() error {
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(s.path(stateFile), data, 0o600)
}

// Open finds a detached site by its directory.
func Open(dir string) (*Site, error) {
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("open the site: %w", err)
	}
	s := new(Site)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("open the site in %s: %w", dir, err)
	}
	if !alive(s.Boot, s.Started) {
		return nil, fmt.Errorf("the site in %s is not running", dir)
	}
	return s, nil
}

// Close ends the site with its guests and removes its directory.
func (s *Site) Close() error {
	if s.release != nil {
		defer s.release()
	}
	if err := s.kill(); err != nil {
		return err
	}
	if s.Dir == "" {
		return nil
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		return fmt.Errorf("remove the site: %w", err)
	}
	return nil
}

// kill ends the first process, with which the kernel ends all others of the site.
func (s *Site) kill() error {
	if s.Boot == 0 || !alive(s.Boot, s.Started) {
		return nil
	}
	// The first process of a session without a namespace ends the others itself, and so has to be asked.
	signal := unix.SIGTERM
	for patience := time.Now().Add(10 * time.Second); ; signal = unix.SIGKILL {
		if err := unix.Kill(s.Boot, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end the site's processes: %w", err)
		}
		if s.awaitEnd(3 * time.Second) {
			return nil
		}
		if time.Now().After(patience) {
			return fmt.Errorf("the site's process %d does not end", s.Boot)
		}
	}
}

func (s *Site) awaitEnd(limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for alive(s.Boot, s.Started) {
		select {
		case <-s.done: // nil in a site that Open found, so that polling decides
			return true
		case <-time.After(20 * time.Millisecond):
			if time.Now().After(deadline) {
				return false
			}
		}
	}
	return true
}

// awaitDaemon waits until libvirtd answers.
func (s *Site) awaitDaemon(ctx context.Context) error {
	for {
		conn, err := net.Dial("unix", s.Socket)
		if err == nil {
			conn.Close()
			if _, err = s.Virsh(ctx, "version"); err == nil {
				return nil
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-s.done:
			return fmt.Errorf("the site's first process ended: %s", s.logTail())
		case <-ctx.Done():
			return fmt.Errorf("libvirtd does not answer: %w (%w): %s", err, ctx.Err(), s.logTail())
		}
	}
}

func (s *Site) logTail() string {
	const most = 2000
	var text []byte
	for _, name := range []string{"boot.log", "libvirtd.log"} {
		data, _ := os.ReadFile(s.path("log", name))
		text = append(text, data[max(0, len(data)-most):]...)
	}
	return string(text)
}

// RestartDaemon ends libvirtd, as an upgrade does, and waits until a new one answers. Guests run on.
func (s *Site) RestartDaemon(ctx context.Context) error {
	before, err := s.daemon()
	if err != nil {
		return err
	}
	if err := unix.Kill(before, unix.SIGTERM); err != nil {
		return fmt.Errorf("end libvirtd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		if now, err := s.daemon(); err == nil && now != before {
			return s.awaitDaemon(ctx)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for a new libvirtd: %w", ctx.Err())
		}
	}
}

// daemon is libvirtd's process id, as seen from here.
func (s *Site) daemon() (int, error) {
	return s.process(func(args []string) bool { return filepath.Base(args[0]) == "libvirtd" })
}

// Virsh runs virsh at the site and returns what it printed.
func (s *Site) Virsh(ctx context.Context, args ...string) (string, error) {
	path, err := tool("virsh")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"-q", "-c", s.URI}, args...)...)
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("virsh %s: %w: %s", args[0], err, text)
	}
	return text, nil
}

func (s *Site) makePools(ctx context.Context) error {
	for _, pool := range []string{Pool, SecondPool} {
		if _, err := s.Virsh(ctx, "pool-define-as", pool, "dir", "--target", s.PoolDir(pool)); err != nil {
			return err
		}
		if _, err := s.Virsh(ctx, "pool-start", pool); err != nil {
			return err
		}
	}
	return nil
}

// makeNetworks gives names to the bridges that the site's first process made.
func (s *Site) makeNetworks(ctx context.Context) error {
	if !s.System {
		return nil
	}
	for _, name := range []string{Production, Recovery} {
		file := s.path("etc", name+".xml")
		xml := fmt.Sprintf("<network><name>%s</name><forward mode='bridge'/><bridge name='%s'/></network>",
			name, bridgeName(name))
		if err := os.WriteFile(file, []byte(xml), 0o600); err != nil {
			return err
		}
		if _, err := s.Virsh(ctx, "net-define", file); err != nil {
			return err
		}
		if _, err := s.Virsh(ctx, "net-start", name); err != nil {
			return err
		}
		s.Nets = append(s.Nets, name)
	}
	return nil
}

func bridgeName(network string) string { return "br-" + network[:4] }

func tool(name string) (string, error) {
	path, ok := testenv.FindTool(name)
	if !ok {
		return "", fmt.Errorf("%s is not installed", name)
	}
	return path, nil
}
