package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Config is what an operator sets for an endpoint.
type Config struct {
	URI  string `json:"uri" required:"true" help:"libvirt: qemu+unix:///system?socket=PATH, qemu+tls://HOST/system, qemu+tcp://HOST/system"`
	CA   string `json:"ca" help:"PEM of the authority that issued the host's certificates, for TLS of libvirt and of NBD"`
	Cert string `json:"cert" help:"PEM of the client certificate, for TLS of libvirt and of NBD"`
	Key  string `json:"key" secret:"true" help:"PEM of the client certificate's key"`

	Pool       string `json:"pool" help:"storage pool for restored disks; without it the pool named default"`
	ScratchDir string `json:"scratch_dir" help:"directory at the host for sockets and scratch files, writable for QEMU; without it the disk's own directory"`
	// A size as text: numbers have no units, and nobody counts the zeroes of one.
	ScratchLimit string `json:"scratch_limit" help:"most room that scratch files of one snapshot may take, as 512M or 20G, before the backup is ended to spare the guest; without it half of what is free when it begins"`

	NBDAddress  string `json:"nbd_address" help:"address at which QEMU of a remote host listens for NBD; without it the host in uri"`
	NBDPorts    string `json:"nbd_ports" help:"ports for that, as 10809-10872, which is the default"`
	NBDTLSDir   string `json:"nbd_tls_dir" help:"directory at the host with QEMU's NBD certificates, for restores; without it /etc/pki/libvirt-backup"`
	InsecureNBD bool   `json:"insecure_nbd" help:"read and write disks of a remote host in plaintext: everybody between can read and change them"`

	Instance string `json:"instance" help:"name of this installation, to tell its snapshots from others'; without it one derived from the machine's id"`
}

const (
	defaultPool     = "default"
	defaultTLSDir   = "/etc/pki/libvirt-backup"
	firstNBDPort    = 10809
	lastNBDPort     = 10872
	xmlnsTags       = "https://holdfast-dr.org/xmlns/libvirt/1.0"
	xmlnsRun        = "https://holdfast-dr.org/xmlns/libvirt/run/1.0"
	xmlnsClaim      = "https://holdfast-dr.org/xmlns/libvirt/claim/1.0"
	xmlnsDraft      = "https://holdfast-dr.org/xmlns/libvirt/draft/1.0"
	xmlnsOrigin     = "https://holdfast-dr.org/xmlns/libvirt/origin/1.0"
	metadataKey     = "holdfast"
	maxOpID         = 1024
	longestSockPath = 107
)

// platform is a connection to one libvirt.
type platform struct {
	config      Config
	endpoint    endpoint
	control     *connection // every call but those of safety
	safety      *connection // thaws, even when control is stuck in a freeze
	instance    string      // 8 hex digits
	ports       [2]int
	mostScratch int64 // 0: what limitScratch finds

	// whileFrozen is called between freeze and thaw. Tests stop here.
	whileFrozen func()

	poolDirs poolDirs

	mu     sync.Mutex // guards what follows
	locks  map[string]*sync.Mutex
	guards map[string]*guard // that this process started, by checkpoint
}

var (
	_ sdk.Platform      = (*platform)(nil)
	_ sdk.Source        = (*platform)(nil)
	_ sdk.ChangeTracker = (*platform)(nil)
	_ sdk.Target        = (*platform)(nil)
	_ sdk.Power         = (*platform)(nil)
	_ sdk.Watcher       = (*platform)(nil)
)

// open makes a platform. It does not connect: an endpoint that is away is what Probe reports.
func open(c Config) (*platform, error) {
	e, err := parseEndpoint(c)
	if err != nil {
		return nil, err
	}
	p := &platform{
		config: c, endpoint: e,
		control: &connection{endpoint: e}, safety: &connection{endpoint: e},
		locks: make(map[string]*sync.Mutex), guards: make(map[string]*guard), whileFrozen: func() {},
	}
	if p.ports, err = parsePorts(c.NBDPorts); err != nil {
		return nil, err
	}
	if p.mostScratch, err = parseSize(c.ScratchLimit); err != nil {
		return nil, err
	}
	name := c.Instance
	if name == "" {
		id, _ := os.ReadFile("/etc/machine-id") // without one, all such machines count as one installation
		name = string(id)
	}
	sum := sha256.Sum256([]byte("holdfast instance " + name))
	p.instance = hex.EncodeToString(sum[:4])
	return p, nil
}

func parsePorts(text string) ([2]int, error) {
	if text == "" {
		return [2]int{firstNBDPort, lastNBDPort}, nil
	}
	low, high, ok := strings.Cut(text, "-")
	first, err1 := strconv.Atoi(low)
	last, err2 := strconv.Atoi(high)
	if !ok || err1 != nil || err2 != nil || first < 1 || last > 65535 || first > last {
		return [2]int{}, invalid("setting nbd_ports %q is not a range such as 10809-10872", text)
	}
	return [2]int{first, last}, nil
}

// Close ends the connections. Guards of snapshots that are open stay.
func (p *platform) Close() error {
	p.mu.Lock()
	for _, g := range p.guards {
		_ = g.words.Close() // which it takes for the end of this process
	}
	p.mu.Unlock()
	_ = p.safety.close() // never fails
	return p.control.close()
}

// lock makes methods that change one object take turns.
func (p *platform) lock(name string) (unlock func()) {
	p.mu.Lock()
	l := p.locks[name]
	if l == nil {
		l = new(sync.Mutex)
		p.locks[name] = l
	}
	p.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// steady bounds a method that must not stop half-way because its caller no longer waits.
func steady(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), workLimit)
}

// domain finds a machine.
func (p *platform) domain(ctx context.Context, id sdk.MachineID) (libvirt.Domain, error) {
	parsed, err := uuid.Parse(string(id))
	if err != nil {
		return libvirt.Domain{}, notFound("machine %q", id)
	}
	dom, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (libvirt.Domain, error) {
		return lv.DomainLookupByUUID(libvirt.UUID(parsed))
	})
	if is(err, libvirt.ErrNoDomain) {
		return dom, notFound("machine %s", id)
	}
	return dom, err
}

// machine finds a machine for a mutating call, if it lies in the space.
func (p *platform) machine(ctx context.Context, op sdk.Op, id sdk.MachineID) (libvirt.Domain, error) {
	if err := checkOp(op); err != nil {
		return libvirt.Domain{}, err
	}
	s, err := parseSpace(op.Space)
	if err != nil {
		return libvirt.Domain{}, err
	}
	dom, err := p.domain(ctx, id)
	if err != nil {
		return dom, err
	}
	if !strings.HasPrefix(dom.Name, s.prefix) {
		return dom, sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "machine %s lies outside the space", id)
	}
	return dom, nil
}

func machineID(dom libvirt.Domain) sdk.MachineID { return sdk.MachineID(uuid.UUID(dom.UUID).String()) }

// space is where a tenant's objects live: names with a prefix, and one pool if it names one.
type space struct{ pool, prefix string }

var spaceText = regexp.MustCompile(`^(?:([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})/)?([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$`)

func parseSpace(text sdk.Space) (space, error) {
	m := spaceText.FindStringSubmatch(string(text))
	if m == nil {
		return space{}, invalid("space %q is not PREFIX or POOL/PREFIX", text)
	}
	return space{pool: m[1], prefix: m[2]}, nil
}

var plainID = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func checkOp(op sdk.Op) error {
	if op.ID == "" || len(op.ID) > maxOpID {
		return invalid("an operation's id has 1 to %d characters", maxOpID)
	}
	return nil
}

// label is an operation's id in a form that fits into every name: itself, or a hash of it.
func label(opID string) string {
	if len(opID) <= 40 && plainID.MatchString(opID) {
		return opID
	}
	sum := sha256.Sum256([]byte(opID))
	return "x" + hex.EncodeToString(sum[:16])
}

func dirOf(file string) string { return path.Dir(file) } // the host's paths are POSIX paths wherever we run
