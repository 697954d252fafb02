package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The documents teach by commands that people type. Each line of an indented or fenced block that starts with holdfast is
// held to the program: the command has to exist, and every flag has to be in its help.
func TestCommandsInTheDocumentsExist(t *testing.T) {
	program := filepath.Join(t.TempDir(), "holdfast")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	checked := 0
	for _, document := range []string{"README.md", "CONTRIBUTING.md", recoveryPage,
		"sdk/README.md", "sdk/plugin/PROTOCOL.md", "sdk/example/node/README.md"} {
		text, err := os.ReadFile(filepath.Join("..", "..", document))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range documentedCommands(string(text)) {
			checked++
			if fault := judgeCommand(t, program, line); fault != "" {
				t.Errorf("%s: %q: %s", document, line, fault)
			}
		}
	}
	if checked == 0 {
		t.Error("no command found in the documents; the search is broken")
	}
}

var (
	block   = regexp.MustCompile("(?ms)^```.*?^```")
	command = regexp.MustCompile(`(?m)^(?:\$ )?(holdfast .*)$`)
	inline  = regexp.MustCompile("`(holdfast [a-z][^`]*)`")
	verb    = regexp.MustCompile(`^[a-z][a-z-]*$`)
	flag    = regexp.MustCompile(`^-{1,2}[a-z][a-z-]*`)
)

// documentedCommands finds the command lines of a Markdown text, in blocks and inside sentences.
func documentedCommands(text string) (lines []string) {
	for _, b := range block.FindAllString(text, -1) {
		for _, m := range command.FindAllStringSubmatch(strings.ReplaceAll(b, "\\\n", " "), -1) {
			lines = append(lines, m[1])
		}
	}
	for _, m := range inline.FindAllStringSubmatch(text, -1) {
		lines = append(lines, m[1])
	}
	return lines
}

// judgeCommand asks the program for help about a line's command and returns what the line names that the help does not.
func judgeCommand(t *testing.T, program, line string) string {
	words := strings.Fields(line)[1:]
	var path, flags []string
	for _, word := range words {
		if f := flag.FindString(word); len(f) > 2 {
			flags = append(flags, "--"+strings.TrimLeft(f, "-")) // -dev means --dev
		} else if f != "" {
			flags = append(flags, f)
		}
	}
	// The longest chain of words that the program knows is the command; the rest are its arguments.
	help := ""
	for _, word := range words {
		if !verb.MatchString(word) {
			break
		}
		out, err := exec.Command(program, append(slices.Clone(path), word, "--help")...).CombinedOutput()
		usage := "holdfast " + strings.Join(append(slices.Clone(path), word), " ")
		if err != nil || !regexp.MustCompile(`(?m)^\s*`+regexp.QuoteMeta(usage)+`\b`).Match(out) {
			break
		}
		path, help = append(path, word), string(out)
	}
	if len(path) == 0 {
		return "there is no such command"
	}
	if strings.Contains(help, "Available Commands:") && len(path) < len(words) && verb.MatchString(words[len(path)]) {
		return "holdfast " + strings.Join(path, " ") + " has no command " + words[len(path)]
	}
	for _, f := range flags {
		if !regexp.MustCompile(`(?m)(^|[\s,])` + regexp.QuoteMeta(f) + `\b`).MatchString(help) {
			return "holdfast " + strings.Join(path, " ") + " has no flag " + f
		}
	}
	return ""
}
