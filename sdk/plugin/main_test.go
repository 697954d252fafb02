package plugin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// TestMain is three programs: the tests, the plugin that they start, and a
// host that is killed.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("HOLDFAST_PLUGIN") != "" || len(os.Args) == 2 && os.Args[1] == "describe":
		plugin.Serve(author)
	case os.Getenv("TEST_HOST_DIR") != "":
		hostThatIsKilled(os.Getenv("TEST_HOST_DIR"))
	default:
		os.Exit(m.Run())
	}
}

type config struct {
	Dir      string `json:"dir" help:"of the simulated hypervisor" required:"true"`
	Password string `json:"password" help:"not used" secret:"true"`
	sim.Settings
}

// author is a plugin over a simulated hypervisor that does as it is told by
// the machine that is probed.
var author = plugin.Author{
	Name: "test", Version: "1.2.3", Config: &config{}, Type: (*puppet)(nil),
	Open: func(_ context.Context, c any) (sdk.Platform, error) {
		config := c.(*config)
		hv, err := sim.Open(config.Dir)
		if err != nil {
			return nil, err
		}
		return &puppet{Platform: hv.Connect(config.Settings), password: config.Password}, nil
	},
}

type puppet struct {
	*sim.Platform
	password string
}

func (p *puppet) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	verb, rest, _ := strings.Cut(string(subject.Machine), " ")
	switch verb {
	case "environment":
		return sdk.Report{Product: strings.Join(os.Environ(), "\n")}, nil
	case "panic":
		panic("on request")
	case "leak":
		plugin.Log(ctx).Info("connecting", "password", p.password)
		fmt.Fprintln(os.Stderr, "raw line with", p.password)
		return sdk.Report{}, fmt.Errorf("login with %s: %w", p.password, sdk.ErrDenied)
	case "slow":
		<-ctx.Done()
		return sdk.Report{}, &sdk.Error{Kind: sdk.ErrPending, Progress: 0.5}
	case "late":
		<-ctx.Done()
		return sdk.Report{}, ctx.Err()
	case "huge":
		return sdk.Report{Product: strings.Repeat("x", plugin.MaxMessage+1)}, nil
	case "error":
		for _, f := range errorForms() {
			if f.name == rest {
				return sdk.Report{}, f.err
			}
		}
		return sdk.Report{}, fmt.Errorf("no form %q", rest)
	}
	return p.Platform.Probe(ctx, subject)
}

type errorForm struct {
	name string
	err  error
}

// errorForms are all the ways in which an author may return a sentinel.
func errorForms() []errorForm {
	forms := []errorForm{
		{"plain", errors.New("something else")},
		{"progress", &sdk.Error{Kind: sdk.ErrPending, Fault: sdk.FaultBackend, Message: "copying", Progress: 0.25, After: 1500e6}},
		{"hint", sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "no network %q", "lan").WithHint("networks: a, b")},
		{"no kind", &sdk.Error{Fault: sdk.FaultBackend, Message: "odd"}},
		{"not UTF-8", errors.New("bad \xff byte")},
		{"long", errors.New(strings.Repeat("long ", 10000))},
	}
	for i, code := range sdk.Codes() {
		err := code.Sentinel()
		next := sdk.Codes()[(i+1)%len(sdk.Codes())].Sentinel()
		forms = append(forms,
			errorForm{"bare-" + string(code), err},
			errorForm{"wrapped-" + string(code), fmt.Errorf("open disk vda: %w", err)},
			errorForm{"typed-" + string(code), sdk.Errorf(err, sdk.FaultBackend, "disk vda")},
			errorForm{"wrapped-typed-" + string(code), fmt.Errorf("backup: %w", sdk.Errorf(err, sdk.FaultBackend, "disk vda").WithHint("look"))},
			errorForm{"joined-" + string(code), errors.Join(errors.New("first"), err)},
			errorForm{"two-" + string(code), errors.Join(err, fmt.Errorf("and: %w", next))},
			errorForm{"in-the-middle-" + string(code), fmt.Errorf("%w while looking", err)},
		)
	}
	return forms
}

// logged is a slog handler that keeps lines.
type logged struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.String()
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func settings(t testing.TB, fields map[string]any) json.RawMessage {
	t.Helper()
	doc, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// launch is how this test binary is started as a plugin.
func launch(t testing.TB, fields map[string]any) plugin.Launch {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := plugin.Checksum(path)
	if err != nil {
		t.Fatal(err)
	}
	return plugin.Launch{Path: path, SHA256: sum, Settings: settings(t, fields)}
}

// start starts this test binary as a plugin.
func start(t testing.TB, l plugin.Launch) *plugin.Process {
	t.Helper()
	p, err := plugin.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// local serves the author in this process.
func local(t testing.TB, l plugin.Launch) *plugin.Process {
	t.Helper()
	p, err := plugin.Local(t.Context(), author, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// both runs a test on a plugin in this process and on one of its own, reached
// directly and through a relay.
func both(t *testing.T, fields map[string]any, test func(t *testing.T, p *plugin.Process)) {
	t.Run("local", func(t *testing.T) { test(t, local(t, launch(t, fields))) })
	t.Run("process", func(t *testing.T) { test(t, start(t, launch(t, fields))) })
	t.Run("relayed", func(t *testing.T) {
		p, _ := relayed(t, launch(t, fields))
		test(t, p)
	})
}

func probe(p *plugin.Process, machine string) (sdk.Report, error) {
	return p.Platform().Probe(context.Background(), sdk.Subject{Machine: sdk.MachineID(machine)})
}
