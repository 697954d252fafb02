package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

const (
	// startLimit is how long a process may take to speak its first line.
	startLimit = 20 * time.Second
	// describeLimit is how long "describe" may take, and maxDescription what it
	// may print.
	describeLimit  = 10 * time.Second
	maxDescription = 1 << 20
	// maxAbilities is more than the contract will ever have.
	maxAbilities = 256
	// searchPath is a plugin's PATH: it does not depend on the host's.
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// closeGrace is how long a process may take to end when it is asked.
	closeGrace = 3 * time.Second
	// maxSocketDir is the longest directory in which a unix socket still has
	// room: its path has at most 108 bytes on Linux.
	maxSocketDir = 60
)

// Launch says which program to start, and with what.
type Launch struct {
	Path     string // absolute
	SHA256   string // in hex; the program is refused if it has another
	Settings json.RawMessage
	// RunDir is where the process gets a directory of its own, mode 0700, for
	// its sockets. "" is the system's temporary directory, and so is one whose
	// path is too long for a socket.
	RunDir string
	Log    *slog.Logger // nil: nothing is logged
	// CallLimit is the longest that a call may take; 0 means sdk.CallLimit.
	CallLimit time.Duration
	// WrapData is put around every connection to the bytes of a disk; nil leaves
	// them as they are. Suites cut and hold them there.
	WrapData func(net.Conn) net.Conn
	// Lines gets every line of the plugin's log that is kept, beside Log. It is
	// called from several goroutines and must not wait.
	Lines func(Line)
	// User is whom the process runs as, and Limits what it may use. What this
	// machine does not let the host apply is in Process.Unmet. Cgroup is a
	// directory of cgroup v2 that belongs to the host; "" is none.
	User   *User
	Limits Limits
	Cgroup string
	// Reach is asked before the host dials a disk's address outside the
	// directory of the process, and may answer where to dial in its place; nil
	// allows all.
	Reach func(sdk.Address) (sdk.Address, error)
}

func (l Launch) log() *slog.Logger {
	if l.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.Log
}

func (l Launch) runDir() string {
	if l.RunDir == "" || len(l.RunDir) > maxSocketDir {
		return os.TempDir()
	}
	return l.RunDir
}

// Process is a plugin that runs, configured for one endpoint.
type Process struct {
	description Description
	platform    *remote
	pid         int
	unmet       []string
	ended       func() string
	stop        func()
	done        <-chan struct{} // the process has ended
	tidy        <-chan struct{} // and so has everything about it
	closing     sync.Once
}

// Platform is the author's platform. It lasts as long as the process, which
// its Close ends.
func (p *Process) Platform() sdk.Platform { return p.platform }

// Describe is what the plugin says of itself.
func (p *Process) Describe() Description { return p.description }

// PID is the number of the process; that of the caller for Local.
func (p *Process) PID() int { return p.pid }

// Ended says how a process ended that Done reports, as far as this machine
// knows.
func (p *Process) Ended() string {
	select {
	case <-p.done:
		if p.ended != nil {
			return p.ended()
		}
	default:
	}
	return ""
}

// Lost says why the machine of the process cannot be reached any more: nobody
// knows how the process is. nil while it can, and for a process here.
func (p *Process) Lost() error {
	if p.platform.lost == nil {
		return nil
	}
	return p.platform.lost()
}

// Unmet is what of the launch's user and limits could not be applied, and why.
func (p *Process) Unmet() []string { return p.unmet }

// Done is closed when the process has ended, by Close or otherwise.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close ends the process: politely, and after three seconds otherwise. Work at
// the back-end goes on.
func (p *Process) Close() error {
	p.closing.Do(p.stop)
	<-p.tidy
	return nil
}

// Start starts a program, checks it and its settings, and has it connect to
// its endpoint. ctx bounds the start alone.
func Start(ctx context.Context, l Launch) (*Process, error) {
	file, err := verified(l.Path, l.SHA256)
	if err != nil {
		return nil, err
	}
	var (
		secrets = new(secretText)
		log     = l.log().With("plugin", l.name())
		started atomic.Pointer[program]
	)
	client := newClient(l, file, protocols(nil), l.output(log, secrets), &started)
	tidy := make(chan struct{})
	stopWaiting := context.AfterFunc(ctx, func() { kill(client, &started, 0) })
	p, err := connect(ctx, client, l, secrets)
	if !stopWaiting() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		kill(client, &started, 0)
		_ = file.Close()
		return nil, fmt.Errorf("start plugin %s: %w", filepath.Base(l.Path), err)
	}
	running := started.Load()
	p.pid, p.done, p.tidy = running.command.Process.Pid, running.done, tidy
	p.unmet = running.keep.unmet
	running.keep.guards.Store(p.description.Guards)
	p.ended = func() string { return running.command.ProcessState.String() }
	p.platform.gone, p.platform.dir = running.done, running.dir
	asked := make(chan struct{})
	p.stop = func() { close(asked); kill(client, &started, closeGrace) }
	log = log.With("pid", p.pid)
	log.Info("plugin started", "version", p.description.Version, "protocol", client.NegotiatedVersion())
	go func() {
		defer close(tidy)
		<-running.done
		select {
		case <-asked:
			log.Info("plugin ended")
		default:
			log.Warn("plugin ended by itself", "state", running.command.ProcessState.String())
			client.Kill() // releases what go-plugin holds for it
		}
	}()
	return p, nil
}

// name is the plugin's, from that of its program.
func (l Launch) name() string { return strings.TrimPrefix(filepath.Base(l.Path), "holdfast-plugin-") }

// kill ends a process. It is asked first, and killed when it has not ended
// after the grace: one that hangs does not answer.
func kill(client *goplugin.Client, started *atomic.Pointer[program], grace time.Duration) {
	end := func() {
		if p := started.Load(); p != nil {
			_ = p.Kill(context.Background()) // it has ended, or cannot be ended by anybody
		}
	}
	if grace <= 0 {
		end()
	} else {
		defer time.AfterFunc(grace, end).Stop()
	}
	client.Kill()
}

// output is where what a process says goes: to its stderr, and, through
// go-plugin, what it printed to os.Stdout and os.Stderr.
type output struct{ stderr, printed, blamed io.Writer }

// output logs what a process says, all of it within one bound.
func (l Launch) output(log *slog.Logger, secrets *secretText) output {
	lines := func(level slog.Level) *logLines {
		return &logLines{log: log, secrets: secrets, level: level, keep: l.Lines}
	}
	stderr, printed, blamed := lines(slog.LevelWarn), lines(slog.LevelInfo), lines(slog.LevelInfo)
	shared := newFlow(stderr.left)
	stderr.shared, printed.shared, blamed.shared = shared, shared, shared
	return output{stderr: stderr, printed: printed, blamed: blamed}
}

// newClient is go-plugin's side of a program; started is set when the program
// is about to be started.
func newClient(l Launch, file *os.File, plugins map[int]goplugin.PluginSet, out output, started *atomic.Pointer[program]) *goplugin.Client {
	identity := &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS13}
	return goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  handshake,
		VersionedPlugins: plugins,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		TLSConfig:        identity, // go-plugin adds the certificate of the process as its root
		SkipHostEnv:      true,
		StartTimeout:     startLimit,
		Logger:           hclog.NewNullLogger(),
		Stderr:           out.stderr,
		SyncStdout:       out.printed,
		SyncStderr:       out.blamed,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: l.runDir()},
		GRPCDialOptions:  dialOptions(),
		RunnerFunc: func(_ hclog.Logger, command *exec.Cmd, dir string) (runner.Runner, error) {
			keep := &confinement{user: l.User, limits: l.Limits, cgroup: l.Cgroup, cookie: "TMPDIR=" + dir}
			if err := keep.give(dir); err != nil {
				return nil, fmt.Errorf("give the plugin's user its directory: %w", err)
			}
			certificate, pem, err := newIdentity()
			if err != nil {
				return nil, err
			}
			identity.Certificates = []tls.Certificate{certificate}
			environment := append(command.Env, clientCertificate+"="+pem, "PATH="+searchPath, keep.cookie)
			p := newProgram(l.Path, file, environment, keep)
			p.dir = dir
			started.Store(p)
			return p, nil
		},
	})
}

// connect is the part of a start after which the platform is there.
func connect(ctx context.Context, client *goplugin.Client, l Launch, secrets *secretText) (*Process, error) {
	conn, err := client.Client()
	if err != nil {
		return nil, notConnected(err)
	}
	raw, err := conn.Dispense(serviceName)
	if err != nil {
		return nil, sdk.Errorf(nil, sdk.FaultPlugin, "%v", err)
	}
	return configure(ctx, raw.(pluginv1.PluginServiceClient), l, secrets)
}

// notConnected is why a program did not become a plugin. What go-plugin found
// out is in its text alone; what it does not name is a first line that is not
// that of a plugin, or of another protocol.
func notConnected(err error) error {
	if e, ok := errors.AsType[*sdk.Error](err); ok {
		return e
	}
	e := sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "%s", clip(err.Error(), maxErrorText))
	switch text := err.Error(); {
	case strings.Contains(text, "timeout while waiting"):
		return troubled(TroubleSilence, e)
	case strings.Contains(text, "exited before"), strings.Contains(text, "Failed to read any lines"), strings.Contains(text, "connection"):
		return troubled(TroubleDeath, e)
	default:
		return troubled(TroubleBreach, e)
	}
}

// configure asks a plugin what it is, checks the settings and hands them over.
func configure(ctx context.Context, client pluginv1.PluginServiceClient, l Launch, secrets *secretText) (*Process, error) {
	r := &remote{client: client, wrapData: l.WrapData, limit: l.CallLimit, secrets: secrets, reach: l.Reach}
	if r.limit <= 0 {
		r.limit = sdk.CallLimit
	}
	answer, err := call(ctx, r, "Describe", client.Describe, &pluginv1.DescribeRequest{})
	if err != nil {
		return nil, err
	}
	description, err := parseDescription(answer.GetJson())
	if err != nil {
		return nil, err
	}
	if err := description.Config.Validate(l.Settings); err != nil {
		return nil, err
	}
	secrets.set(description.Config.secrets(l.Settings))
	configured, err := call(ctx, r, "Configure", client.Configure, &pluginv1.ConfigureRequest{Settings: l.Settings})
	if err != nil {
		return nil, err
	}
	if len(configured.GetAbilities()) > maxAbilities {
		return nil, broken("%d abilities", len(configured.GetAbilities()))
	}
	for _, name := range configured.GetAbilities() {
		r.abilities = append(r.abilities, sdk.Ability(name))
	}
	p := &Process{description: description, platform: r}
	r.end = p.Close
	return p, nil
}

func parseDescription(doc []byte) (Description, error) {
	var d Description
	if len(doc) > maxDescription {
		return d, broken("a description of more than %d bytes", maxDescription)
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		return d, broken("a description that is not JSON: %v", err)
	}
	if d.Name == "" || len(d.Name) > 64 || len(d.Version) > 64 || d.Protocol < 1 {
		return d, broken("a description without name, version or protocol")
	}
	if len(d.Abilities) > maxAbilities {
		return d, broken("%d abilities", len(d.Abilities))
	}
	return d, d.Config.sound()
}

// Describe runs a program with the argument "describe". The program has to
// have the checksum, and is run without an endpoint, in the environment of any
// plugin.
func Describe(ctx context.Context, path, sha256 string) (Description, error) {
	return Launch{Path: path, SHA256: sha256}.Describe(ctx)
}

// Describe runs the program with the argument "describe", as the user and
// within the limits of the launch.
func (l Launch) Describe(ctx context.Context) (Description, error) {
	path := l.Path
	file, err := verified(path, l.SHA256)
	if err != nil {
		return Description{}, err
	}
	cookie := "HOLDFAST_DESCRIBE=" + newToken()
	keep := &confinement{user: l.User, limits: l.Limits, cgroup: l.Cgroup, cookie: cookie}
	p := newProgram(path, file, []string{"PATH=" + searchPath, cookie}, keep, "describe")
	if err := p.Start(ctx); err != nil {
		return Description{}, err
	}
	defer closeAll([]*os.File{p.stdin})
	ctx, cancel := context.WithTimeout(ctx, describeLimit)
	defer cancel()
	context.AfterFunc(ctx, func() { _ = p.Kill(context.Background()) })

	var stderr bytes.Buffer
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(&stderr, io.LimitReader(p.stderr, maxErrorText))
		_, _ = io.Copy(io.Discard, p.stderr)
	}()
	doc, readErr := io.ReadAll(io.LimitReader(p.stdout, maxDescription+1))
	if readErr == nil && len(doc) > maxDescription {
		_ = p.Kill(context.Background())
	}
	<-p.done
	<-drained
	switch {
	case ctx.Err() != nil:
		return Description{}, fmt.Errorf("describe %s: %w", path, ctx.Err())
	case p.err != nil || readErr != nil:
		return Description{}, sdk.Errorf(nil, sdk.FaultPlugin, "describe %s: %v: %s", path, errors.Join(p.err, readErr), bytes.TrimSpace(stderr.Bytes()))
	}
	return parseDescription(doc)
}

// Local serves an author's plugin in this process, over the same gRPC and NBD
// as a process of its own would, for tests. Path, SHA256 are not used.
func Local(ctx context.Context, a Author, l Launch) (*Process, error) {
	description, err := a.Describe()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(l.runDir(), "plugin-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for sockets: %w", err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "control.sock"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), os.RemoveAll(dir))
	}
	s := newServer(a, description, dir, l.log())
	grpcServer := grpc.NewServer(s.options()...)
	pluginv1.RegisterPluginServiceServer(grpcServer, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = grpcServer.Serve(listener)
		s.close()
		_ = os.RemoveAll(dir)
	}()
	conn, err := grpc.NewClient("unix:"+listener.Addr().String(),
		append(dialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		grpcServer.Stop()
		<-done
		return nil, fmt.Errorf("connect: %w", err)
	}
	p, err := configure(ctx, pluginv1.NewPluginServiceClient(conn), l, new(secretText))
	if err != nil {
		_ = conn.Close()
		grpcServer.Stop()
		<-done
		return nil, err
	}
	p.pid, p.done, p.tidy = os.Getpid(), done, done
	p.stop = func() {
		_ = conn.Close()
		grpcServer.Stop()
	}
	return p, nil
}
