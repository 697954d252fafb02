package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// commands are all commands that a user can call, without cobra's own.
func commands(root *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, cmd := range root.Commands() {
		if !cmd.Hidden && cmd.Name() != "help" && cmd.Name() != "completion" {
			all = append(append(all, cmd), commands(cmd)...)
		}
	}
	return all
}

func TestEveryCommandTeachesByExample(t *testing.T) {
	for _, cmd := range commands(newRoot(&app{console: console{env: func(string) string { return "" }}})) {
		if cmd.Short == "" {
			t.Errorf("%s has no short text", cmd.CommandPath())
		}
		if cmd.HasSubCommands() {
			continue // its verbs are listed, and have examples
		}
		if !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s: no example calls it: %q", cmd.CommandPath(), cmd.Example)
		}
		for line := range strings.Lines(cmd.Example) {
			if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: the example %q is not indented as the others", cmd.CommandPath(), line)
			}
		}
	}
}

// Without a completion of its own, an argument is completed with the names of
// files, which is right for files alone.
func TestArgumentsComplete(t *testing.T) {
	for _, cmd := range commands(newRoot(&app{console: console{env: func(string) string { return "" }}})) {
		_, arguments, _ := strings.Cut(cmd.Use, " ")
		if cmd.HasSubCommands() || cmd.ValidArgsFunction != nil || len(cmd.ValidArgs) > 0 || strings.Contains(arguments, "FILE") || strings.Contains(arguments, "DIRECTORY") ||
			strings.Contains(arguments, "PROGRAM") {
			continue
		}
		t.Errorf("%s completes its arguments %q with the names of files", cmd.CommandPath(), arguments)
	}
}
