package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Module finds the module's root, in which the programs are built.
func Module() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("find the module: run this inside Holdfast's repository")
	}
	return filepath.Dir(mod), nil
}

// Build builds holdfast and the named plugins into a directory. Env is added to
// the environment, such as CGO_ENABLED=0.
func Build(ctx context.Context, dir string, env []string, plugins ...string) error {
	root, err := Module()
	if err != nil {
		return err
	}
	packages := []string{"./cmd/holdfast"}
	for _, p := range plugins {
		packages = append(packages, "./plugins/"+p)
	}
	for _, p := range packages {
		name := filepath.Base(p)
		if strings.HasPrefix(p, "./plugins/") {
			name = "holdfast-plugin-" + name
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, name), p)
		cmd.Dir, cmd.Env = root, append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", p, err, out)
		}
	}
	return nil
}

// Options say what a Stack is made of.
type Options struct {
	Dir string // everything is below it; short, since sockets are
	Bin string // where Build put the programs
	// Prefix runs before the server's and the agent's commands, such as
	// {"ip", "netns", "exec", NAME}.
	ServerPrefix, AgentPrefix []string
	Listen                    string // of the server; "" is a free port on loopback
	Via                       string // what the agent connects to, if not the server itself
	ServerFlags               []string
	Env                       []string
}

// Stack is a provider and a tenant.
type Stack struct {
	Options
	Server *Process
	Agent  *Process

	// What `server -dev` prepared; see its dev.env.
	Address, Fingerprint, Token, Enrolment string

	address string // as it was first chosen
}

// New makes a stack; nothing runs yet.
func New(o Options) (*Stack, error) {
	s := &Stack{Options: o}
	for _, dir := range []string{s.ServerData(), s.AgentData()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if s.address = o.Listen; s.address == "" {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		s.address = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return s, nil
}

// Move has the server listen elsewhere from its next start on.
func (s *Stack) Move(listen string) { s.address = listen }

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// ServerData and AgentData are the data directories; Repository is where the
// demo tenant's cloud repository lies.
func (s *Stack) ServerData() string { return filepath.Join(s.Dir, "provider") }
func (s *Stack) AgentData() string  { return filepath.Join(s.Dir, "tenant") }
func (s *Stack) Repository() string { return filepath.Join(s.ServerData(), "repository") }

// Socket is the agent's.
func (s *Stack) Socket() string { return filepath.Join(s.AgentData(), "agent.sock") }

// startTime bounds the start of a process, also where the processor is busy with others.
const startTime = 3 * time.Minute

// StartServer starts the provider, or starts it again with its data.
func (s *Stack) StartServer(ctx context.Context) error {
	args := []string{"server", "--dev", "--data", s.ServerData(), "--listen", s.address}
	p, err := s.start("server", s.ServerPrefix, append(args, s.ServerFlags...))
	if err != nil {
		return err
	}
	s.Server = p
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	return Until(ctx, "the server to answer at "+s.address, func() (bool, error) {
		if ended(p) {
			cancel()
			return false, fmt.Errorf("the server ended: %s", p.Output())
		}
		if err := s.readCredentials(); err != nil {
			return false, err
		}
		api, err := s.ServerAPI()
		if err == nil && len(s.ServerPrefix) == 0 {
			err = api.Do(ctx, "GET", "/v1/status", nil, nil)
		} else if err == nil { // it may listen where this process has no way
			_, err = s.Provider(ctx, "tenant", "list")
		}
		return err == nil, err
	})
}

func ended(p *Process) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

func (s *Stack) readCredentials() error {
	b, err := os.ReadFile(filepath.Join(s.ServerData(), "dev.env"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch name {
		case "HOLDFAST_ADDRESS":
			s.Address = value
		case "HOLDFAST_FINGERPRINT":
			s.Fingerprint = value
		case "HOLDFAST_TOKEN":
			s.Token = value
		case "HOLDFAST_ENROLMENT_TOKEN":
			s.Enrolment = value
		}
	}
	if s.Address != s.address {
		return fmt.Errorf("the server has not taken %s yet", s.address)
	}
	conn, err := net.DialTimeout("tcp", s.address, time.Second)
	if err != nil && len(s.ServerPrefix) == 0 {
		return err
	}
	if err == nil {
		_ = conn.Close()
	}
	return nil
}

// StartAgent starts the tenant's agent, or starts it again with its data.
func (s *Stack) StartAgent(ctx context.Context) error {
	p, err := s.start("agent", s.AgentPrefix, []string{"agent", "serve", "--data", s.AgentData(), "--name", "site", "--plugins", s.Bin})
	if err != nil {
		return err
	}
	s.Agent = p
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	return Until(ctx, "the agent to answer", func() (bool, error) {
		if ended(p) {
			cancel()
			return false, fmt.Errorf("the agent ended: %s", p.Output())
		}
		if _, err := os.Stat(s.Socket()); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		err := s.AgentAPI().Do(ctx, "GET", "/v1/site/keys", nil, nil)
		return err == nil, err
	})
}

func (s *Stack) start(name string, prefix, args []string) (*Process, error) {
	command := append(append([]string(nil), prefix...), append([]string{filepath.Join(s.Bin, "holdfast")}, args...)...)
	return StartProcess(name, filepath.Join(s.Dir, name+".log"), s.environment(), command[0], command[1:]...)
}

func (s *Stack) environment() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.Dir, "XDG_CONFIG_HOME=" + filepath.Join(s.Dir, "config"),
		"TMPDIR=" + os.TempDir(), "TZ=UTC", "LANG=C.UTF-8", "HOLDFAST_SOCKET=" + s.Socket()}
	return append(env, s.Env...)
}

// CommandError is a command that failed, with what it said.
type CommandError struct {
	Args   []string
	Code   int
	Stderr string
}

// Error is what the command said.
func (e *CommandError) Error() string {
	return fmt.Sprintf("holdfast %s: exit code %d: %s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Run runs a command of the tenant and returns what it printed.
func (s *Stack) Run(ctx context.Context, args ...string) (string, error) {
	return s.RunWith(ctx, nil, args...)
}

// RunWith is Run with something on standard input.
func (s *Stack) RunWith(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	return s.command(ctx, s.AgentPrefix, nil, stdin, args)
}

// Provider runs a command of the provider's operator.
func (s *Stack) Provider(ctx context.Context, args ...string) (string, error) {
	env := []string{"HOLDFAST_ADDRESS=" + s.Address, "HOLDFAST_FINGERPRINT=" + s.Fingerprint, "HOLDFAST_TOKEN=" + s.Token}
	return s.command(ctx, s.ServerPrefix, env, nil, args)
}

// Command is a command of the tenant that the caller runs.
func (s *Stack) Command(ctx context.Context, args ...string) *exec.Cmd {
	command := append(append([]string(nil), s.AgentPrefix...), append([]string{filepath.Join(s.Bin, "holdfast")}, args...)...)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = s.environment()
	return cmd
}

func (s *Stack) command(ctx context.Context, prefix, env []string, stdin io.Reader, args []string) (string, error) {
	command := append(append([]string(nil), prefix...), append([]string{filepath.Join(s.Bin, "holdfast")}, args...)...)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append(s.environment(), env...), stdin, &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return stdout.String(), &CommandError{Args: args, Code: exit.ExitCode(), Stderr: stderr.String()}
	}
	return stdout.String(), err
}

// JSON runs a command of the tenant with -o json and decodes its answer.
func (s *Stack) JSON(ctx context.Context, into any, args ...string) error {
	out, err := s.Run(ctx, append(args, "-o", "json")...)
	return decode(out, err, into, args)
}

// ProviderJSON is JSON for the provider's operator.
func (s *Stack) ProviderJSON(ctx context.Context, into any, args ...string) error {
	out, err := s.Provider(ctx, append(args, "-o", "json")...)
	return decode(out, err, into, args)
}

func decode(out string, err error, into any, args []string) error {
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("holdfast %s: %w in %.200q", strings.Join(args, " "), err, out)
	}
	return nil
}

// Connect enrols the agent as a customer would, with token and fingerprint, and
// writes the recovery kit, so that backups may run.
func (s *Stack) Connect(ctx context.Context, kit string) error {
	address := s.Address
	if s.Via != "" {
		address = s.Via
	}
	if _, err := s.RunWith(ctx, strings.NewReader(s.Enrolment+"\n"), "agent", "connect", address,
		"--fingerprint", s.Fingerprint, "--token-file", "-"); err != nil {
		return err
	}
	_, err := s.Run(ctx, "key", "export-kit", kit)
	return err
}

// Close stops what runs.
func (s *Stack) Close() error {
	const grace = 20 * time.Second
	var failures []error
	for _, p := range []*Process{s.Agent, s.Server} {
		if p != nil && !ended(p) {
			failures = append(failures, p.Stop(grace))
		}
	}
	return errors.Join(failures...)
}
