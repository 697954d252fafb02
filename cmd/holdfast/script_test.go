package main

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"holdfast": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			os.Exit(run(ctx, os.Args[1:], console{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv}))
		},
	})
}

// The scripts in testdata/script are the program's behaviour on the command
// line, to be read as documentation. Besides testscript's own commands:
//
//	provider        starts `holdfast server -dev` in $WORK/dev, sets the
//	                variables of its dev.env, and ends it with the script
//	exitcode N      the last exec of holdfast with ? has ended with this code
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir+"/home")
			e.Setenv("XDG_CONFIG_HOME", "")
			e.Setenv("XDG_STATE_HOME", "")
			return os.MkdirAll(e.WorkDir+"/home", 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"provider": startProvider,
			"setenv":   setFromOutput,
		},
	})
}

func startProvider(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: provider")
	}
	p := newScriptProvider(ts)
	ts.Defer(p.stop)
	deadline := time.Now().Add(30 * time.Second)
	for {
		text, err := os.ReadFile(ts.MkAbs("dev/dev.env"))
		if err == nil {
			for line := range strings.Lines(string(text)) {
				if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
					ts.Setenv(name, value)
				}
			}
			return
		}
		if p.ended() || time.Now().After(deadline) {
			ts.Fatalf("the server did not start: %v", err)
		}
		p.pause()
	}
}

// setFromOutput sets a variable to the word after a label in a file:
// setenv NAME FILE LABEL.
func setFromOutput(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: setenv NAME FILE LABEL")
	}
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		if rest, ok := strings.CutPrefix(line, args[2]+" "); ok {
			ts.Setenv(args[0], strings.TrimSpace(rest))
			return
		}
	}
	ts.Fatalf("%s has no line that begins with %s", args[1], args[2])
}
