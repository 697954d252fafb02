package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestAgentScripts runs the scripts in testdata/agent: what somebody types at a
// tenant's site, and what comes back, with a real provider and a simulated
// hypervisor. Besides testscript's own commands there are:
//
//	until COMMAND…     repeats a command until it succeeds
//	exit CODE COMMAND… runs a command that has to exit with this code
//	json VAR PATH      sets a variable from the JSON that was printed last; PATH as in 0.disks.1.name
//	load FILE          sets variables from the NAME=VALUE lines of a file
//	savetoken FILE     writes the enrolment token that load found
//	newtoken FILE      has the provider of load make another one
//
// PORT is a free port, and the simulated hypervisor's plugin is in
// HOLDFAST_PLUGINS and also a command.
func TestAgentScripts(t *testing.T) {
	plugins := buildPlugin(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/agent",
		Setup: func(e *testscript.Env) error {
			port, err := freePort()
			if err != nil {
				return err
			}
			short, err := os.MkdirTemp("", "hf") // a socket's path is bounded
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(short) })
			for name, value := range map[string]string{
				"PORT": port, "HOME": e.WorkDir, "TZ": "UTC", "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": "",
				"HOLDFAST_PLUGINS": plugins, "HOLDFAST_SOCKET": filepath.Join(short, "agent.sock"),
				"PATH": plugins + string(filepath.ListSeparator) + e.Getenv("PATH"),
			} {
				e.Setenv(name, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"until": until, "exit": exitWith, "json": jsonVariable, "load": load, "savetoken": saveToken, "newtoken": newToken,
		},
	})
}

// buildPlugin builds the plugin that the scripts use.
func buildPlugin(t *testing.T) string {
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "holdfast-plugin-sim"), "../../plugins/sim").CombinedOutput()
	if err != nil {
		t.Fatalf("build plugin: %v\n%s", err, out)
	}
	return dir
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

// patience is how long until waits.
const patience = 30 * time.Second

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: until COMMAND…")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%s: still not so after %s: %v", strings.Join(args, " "), patience, err)
		case <-tick.C:
		}
	}
}

func exitWith(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND…")
	}
	code := 0
	err := ts.Exec(args[1], args[2:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("run %s: %v", args[1], err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func jsonVariable(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: json VAR PATH")
	}
	var value any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &value))
	for word := range strings.SplitSeq(args[1], ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[word]
		case []any:
			i, err := strconv.Atoi(word)
			ts.Check(err)
			if i < 0 || i >= len(v) {
				ts.Fatalf("%s: there are only %d", args[1], len(v))
			}
			value = v[i]
		default:
			ts.Fatalf("%s: nothing there", args[1])
		}
	}
	text, ok := value.(string)
	if !ok {
		b, err := json.Marshal(value)
		ts.Check(err)
		text = string(b)
	}
	ts.Setenv(args[0], text)
}

func load(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: load FILE")
	}
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			ts.Setenv(name, value)
		}
	}
}

func saveToken(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: savetoken FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(ts.Getenv("HOLDFAST_ENROLMENT_TOKEN")+"\n"), 0o600))
}

// newToken asks the provider's API, as an operator's script would.
func newToken(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: newtoken FILE")
	}
	a := &app{console: console{env: ts.Getenv}}
	c, err := a.provider()
	ts.Check(err)
	tenants, err := read[struct {
		Items []struct{ ID string }
	}](c.ListTenants(context.Background(), nil))
	ts.Check(err)
	if len(tenants.Items) == 0 {
		ts.Fatalf("the provider has no tenant")
	}
	made, err := read[struct{ Token string }](c.CreateEnrolmentWithBody(context.Background(), tenants.Items[0].ID, nil, jsonType, content(map[string]string{"site": "new"})))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(made.Token+"\n"), 0o600))
}
