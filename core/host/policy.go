package host

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// The users of a policy that are no names.
const (
	// UserHost is the user that Holdfast itself runs as.
	UserHost = "host"
	// UserOwn is a user for the endpoint alone, without a name, a group or a
	// file of its own: a number that nobody else has.
	UserOwn = "own"
)

// Bounds of a policy, and what holds where it says nothing.
const (
	minMemory = 64 << 20
	maxReach  = 64

	// DefaultMemory is far above what a plugin needs that leaves disk bytes to
	// the back-end: RLIMIT_DATA also counts the stacks of its threads, 8 MiB
	// each where C is linked in.
	DefaultMemory = 2 << 30
	// DefaultOpenFiles has room for the two connections of each of 1,024 disks.
	DefaultOpenFiles = 4096
	// DefaultProcesses are processes and threads.
	DefaultProcesses = 512
)

// PluginPolicy is how closely the processes of a plugin are kept. The zero value is
// the default.
type PluginPolicy struct {
	// User is UserHost, UserOwn, or the name or number of a user of this
	// machine. "" is UserOwn, unless the plugin says that it needs the host's
	// user: one that talks to a hypervisor through a socket that only root may
	// open. Only root can choose; elsewhere every plugin runs as the host.
	User string `json:"user,omitempty" maxLength:"64" doc:"host, own, or a user of the machine; by default own, or host if the plugin asks for it"`
	// MemoryBytes, OpenFiles and Processes are DefaultMemory, DefaultOpenFiles
	// and DefaultProcesses if they are 0, and not bounded if they are -1.
	// CPUPercent is not bounded if it is 0; 100 is one CPU.
	MemoryBytes int64 `json:"memory_bytes,omitempty" doc:"0: 2 GiB; -1: no bound"`
	OpenFiles   int64 `json:"open_files,omitempty" doc:"0: 4096; -1: no bound"`
	Processes   int64 `json:"processes,omitempty" doc:"And threads. 0: 512; -1: no bound"`
	CPUPercent  int64 `json:"cpu_percent,omitempty" doc:"100 is one CPU; 0: no bound. Needs a cgroup"`
	// Reach are hosts and directories, beside those that an endpoint's settings
	// name, where the plugin may say that the bytes of disks are.
	Reach []string `json:"reach,omitempty" maxItems:"64" doc:"Hosts, and directories of sockets, where disks may be beside those that an endpoint's settings name"`
}

var userName = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,64}$`)

func (p PluginPolicy) check() error {
	invalid := func(format string, args ...any) error {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, format, args...)
	}
	switch {
	case !userName.MatchString(p.User):
		return invalid("user %q is not a user's name", p.User)
	case p.MemoryBytes < -1 || p.MemoryBytes > 0 && p.MemoryBytes < minMemory:
		return invalid("%d bytes of memory are too few: at least %d, or -1 for no bound", p.MemoryBytes, minMemory)
	case p.OpenFiles < -1 || p.OpenFiles > 0 && p.OpenFiles < 64:
		return invalid("%d open files are too few: at least 64, or -1 for no bound", p.OpenFiles)
	case p.Processes < -1 || p.Processes > 0 && p.Processes < 32:
		return invalid("%d processes and threads are too few: at least 32, or -1 for no bound", p.Processes)
	case p.CPUPercent < 0 || p.CPUPercent > 0 && p.CPUPercent < 5:
		return invalid("%d%% of a CPU is too little: at least 5", p.CPUPercent)
	case len(p.Reach) > maxReach:
		return invalid("a reach of %d entries is too long: at most %d", len(p.Reach), maxReach)
	}
	for _, r := range p.Reach {
		if r == "" || len(r) > 255 || strings.Contains(r, "/") && !filepath.IsAbs(r) {
			return invalid("%q is neither a host nor an absolute directory", r)
		}
	}
	return nil
}

func (p PluginPolicy) limits() plugin.Limits {
	or := func(n, preset int64) int64 {
		switch n {
		case 0:
			return preset
		case -1:
			return 0
		}
		return n
	}
	return plugin.Limits{
		MemoryBytes: or(p.MemoryBytes, DefaultMemory), OpenFiles: or(p.OpenFiles, DefaultOpenFiles),
		Processes: or(p.Processes, DefaultProcesses), CPUPercent: p.CPUPercent,
	}
}

// launch is how a process of an endpoint is started, but for its binary.
func (h *Host) launch(ctx context.Context, e Endpoint, other *Enabled) (plugin.Launch, error) {
	l := plugin.Launch{
		Settings: e.Settings, RunDir: h.options.RunDir, CallLimit: h.options.CallLimit, Cgroup: h.options.Cgroup,
		Log:   h.log.With("endpoint", e.Name),
		Lines: func(line plugin.Line) { h.keepLine(e, line) },
	}
	if len(e.Workers) > 0 {
		return l, nil // a worker keeps it, and dials its disks
	}
	program := other
	if program == nil {
		enabled, err := h.enabled(ctx, e.Plugin, runtime.GOARCH)
		if err != nil {
			return l, err
		}
		program = &enabled
	}
	l.Limits = program.Policy.limits()
	var err error
	if l.User, err = h.userOf(*program, e.ID); err != nil {
		return l, err
	}
	if l.User != nil {
		if l.RunDir, err = h.sharedDir(); err != nil {
			return l, err
		}
	}
	r := reach{policy: program.Policy, settings: e.Settings, user: l.User, private: h.private()}
	l.Reach = r.check
	return l, nil
}

// userOf is whom a program runs as for an endpoint; nil is the host's user.
func (h *Host) userOf(program Enabled, endpointID string) (*plugin.User, error) {
	name := program.Policy.User
	if name == "" {
		var d plugin.Description
		if name = UserOwn; json.Unmarshal(program.Description, &d) == nil && d.HostUser {
			name = UserHost
		}
	}
	root := os.Geteuid() == 0
	switch {
	case name == UserHost:
		return nil, nil
	case name == UserOwn && !root:
		h.sayUnmet(Endpoint{Plugin: program.Plugin}, []string{"a user of its own: Holdfast does not run as root, so plugins run as its user"})
		return nil, nil
	case name == UserOwn:
		u := ownUser(h.options.RunDir, program.Plugin, endpointID)
		if u == nil {
			h.sayUnmet(Endpoint{Plugin: program.Plugin}, []string{"a user of its own: this system has too few user numbers"})
		}
		return u, nil
	}
	u, err := plugin.LookupUser(name)
	if err != nil || int(u.UID) == os.Geteuid() {
		return nil, err
	}
	if !root {
		return nil, sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "plugin %s is to run as user %s, but only root can start processes of other users", program.Plugin, name).
			WithHint("run Holdfast as root, or: holdfast plugin enable %s --user host", program.Plugin)
	}
	return u, nil
}

// Numbers of users that distributions leave alone: above those of accounts and
// of systemd's dynamic users, below those of subordinate users.
const (
	firstOwnUser = 65600
	ownUsers     = 30000
)

// ownUser is a number that stays with the endpoint, so that the next process
// can read what the one before has left. nil: there are no such numbers here.
func ownUser(parts ...string) *plugin.User {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	id := uint32(firstOwnUser + binary.BigEndian.Uint64(sum[:])%ownUsers)
	if !mapped(id) {
		return nil
	}
	return &plugin.User{UID: id, GID: id, Own: true}
}

// mapped reports whether a user's number exists in this user namespace.
func mapped(id uint32) bool {
	table, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(table)) {
		var first, outside, count uint64
		if n, _ := fmt.Sscan(line, &first, &outside, &count); n == 3 && uint64(id) >= first && uint64(id) < first+count {
			return true
		}
	}
	return false
}

func userText(u *plugin.User) string { return strconv.FormatUint(uint64(u.UID), 10) }

// sharedDir is where plugins with users of their own get their directories:
// each may pass through it and not look into it.
func (h *Host) sharedDir() (string, error) {
	h.kept.Lock()
	defer h.kept.Unlock()
	if h.shared != "" {
		return h.shared, nil
	}
	dir, err := h.makeShared()
	if err != nil {
		return "", fmt.Errorf("make the plugins' directory: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // whatever the umask is
		return "", errors.Join(fmt.Errorf("open the plugins' directory to them: %w", err), os.RemoveAll(dir))
	}
	h.shared = dir
	return dir, nil
}

// makeShared makes the directory in /run, which only root can change, under a
// name that stays over restarts, so that what a killed host left is found and
// removed; or, where that cannot be, under a fresh name.
func (h *Host) makeShared() (string, error) {
	if h.options.RunDir != "" {
		sum := sha256.Sum256([]byte(h.options.RunDir))
		dir := "/run/holdfast-" + hex.EncodeToString(sum[:4])
		if os.RemoveAll(dir) == nil && os.Mkdir(dir, 0o711) == nil {
			return dir, nil
		}
	}
	return os.MkdirTemp("", "holdfast-")
}

// private are the directories where no plugin's disk is.
func (h *Host) private() []string {
	h.kept.Lock()
	defer h.kept.Unlock()
	var dirs []string
	for _, dir := range append([]string{h.options.RunDir, h.shared}, h.options.Private...) {
		if dir == "" {
			continue
		}
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// describe runs a candidate with the argument "describe", as closely kept as
// its policy can be known before it has said what it needs.
func (h *Host) describe(ctx context.Context, e Enabled) (plugin.Description, error) {
	l := plugin.Launch{Path: e.Path, SHA256: e.SHA256, Limits: e.Policy.limits(), Cgroup: h.options.Cgroup}
	if os.Geteuid() == 0 {
		l.User = ownUser(h.options.RunDir, e.Plugin, "describe")
	}
	return l.Describe(ctx)
}

// sayUnmet logs once what of a policy could not be applied.
func (h *Host) sayUnmet(e Endpoint, unmet []string) {
	for _, what := range unmet {
		h.kept.Lock()
		said := h.said[e.Plugin+"\x00"+what]
		h.said[e.Plugin+"\x00"+what] = true
		h.kept.Unlock()
		if !said {
			h.note(slog.LevelInfo, e, "a bound of the plugin is not applied on this system", slog.String("bound", what))
		}
	}
}

// reach says where the bytes of a plugin's disks may be.
type reach struct {
	policy   PluginPolicy
	settings json.RawMessage
	user     *plugin.User
	private  []string
}

// check refuses an address that a plugin has no reason to name: the host dials
// it with rights that the plugin may not have.
func (r reach) check(a sdk.Address) (sdk.Address, error) {
	if a.Network == "tcp" {
		return a, r.checkHost(a.Addr)
	}
	refuse := func(format string, args ...any) (sdk.Address, error) {
		return a, sdk.Errorf(sdk.ErrDenied, sdk.FaultPlugin, "the plugin names %q as a disk, "+format, append([]any{a.Addr}, args...)...).
			WithHint("if disks are there, name the directory in the endpoint's settings, or: holdfast plugin enable NAME --reach %s", filepath.Dir(a.Addr))
	}
	if !filepath.IsAbs(a.Addr) {
		return refuse("which is no path")
	}
	path, err := filepath.EvalSymlinks(a.Addr)
	if err != nil {
		return refuse("which is not there: %v", errors.Unwrap(err))
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return refuse("which is no socket")
	}
	for _, dir := range r.private {
		if within(path, dir) {
			return refuse("which is Holdfast's own or another plugin's")
		}
	}
	a.Addr = path
	if r.user == nil || r.named(path) || mayUse(info, r.user) {
		return a, nil
	}
	return refuse("a socket that its user %d may not use and its settings do not name", r.user.UID)
}

func within(path, dir string) bool {
	rest, err := filepath.Rel(dir, path)
	return err == nil && rest != ".." && !strings.HasPrefix(rest, "../")
}

// named reports whether a path is in a directory that the settings or the
// policy name.
func (r reach) named(path string) bool {
	for _, text := range append(texts(r.settings), r.policy.Reach...) {
		if filepath.IsAbs(text) && filepath.Clean(text) != "/" && within(path, filepath.Clean(text)) {
			return true
		}
	}
	return false
}

// checkHost lets a plugin send the host to this machine, and to hosts that the
// settings or the policy name.
func (r reach) checkHost(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return sdk.Errorf(sdk.ErrDenied, sdk.FaultPlugin, "the plugin names %q as a disk, which is no host and port", addr)
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	for _, text := range append(texts(r.settings), r.policy.Reach...) {
		if mentions(text, host) {
			return nil
		}
	}
	return sdk.Errorf(sdk.ErrDenied, sdk.FaultPlugin, "the plugin names %q as a disk, a host that the endpoint's settings do not name", addr).
		WithHint("if disks are there: holdfast plugin enable NAME --reach %s", host)
}

// mentions reports whether a text has a host in it, and not as a part of a
// longer name.
func mentions(text, host string) bool {
	text, host = strings.ToLower(text), strings.ToLower(host)
	part := func(c byte) bool { return c == '.' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' }
	for from := 0; host != ""; {
		i := strings.Index(text[from:], host)
		if i < 0 {
			return false
		}
		i += from
		after := i + len(host)
		if (i == 0 || !part(text[i-1])) && (after == len(text) || !part(text[after])) {
			return true
		}
		from = i + 1
	}
	return false
}

// texts are all the strings in settings, however deep.
func texts(settings json.RawMessage) []string {
	var value any
	if json.Unmarshal(settings, &value) != nil {
		return nil
	}
	var all []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			all = append(all, v)
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(value)
	return all
}
