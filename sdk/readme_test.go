package sdk_test

import (
	"encoding/json"
	"go/format"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// longest is how many lines the plugin that README.md begins with may have.
const longest = 99

// readmeBlocks are the Go blocks of README.md: a whole program, and what it
// learns later.
func readmeBlocks(t *testing.T) (whole string, later []string) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```go\n(.*?)^```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 2 {
		t.Fatalf("README.md has %d blocks of Go", len(blocks))
	}
	for _, b := range blocks[1:] {
		later = append(later, b[1])
	}
	return blocks[0][1], later
}

// fragmentImports are what a block without imports of its own may use.
var fragmentImports = map[string]string{
	"context": "context", "errors": "errors", "json": "encoding/json", "syscall": "syscall", "time": "time",
	"sdk": "github.com/holdfast-dr/holdfast/sdk", "plugin": "github.com/holdfast-dr/holdfast/sdk/plugin",
}

// fragment makes a file of a block without imports.
func fragment(block string) string {
	var file strings.Builder
	file.WriteString("package main\n\nimport (\n")
	for _, name := range slices.Sorted(maps.Keys(fragmentImports)) {
		if regexp.MustCompile(`\b` + name + `\.[A-Z]`).MatchString(block) {
			file.WriteString("\t\"" + fragmentImports[name] + "\"\n")
		}
	}
	file.WriteString(")\n\n" + block)
	return file.String()
}

// vendor builds files as a module outside of this tree does, with a checkout
// and without a network, and answers the path of the program.
func vendor(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "holdfast-plugin-shelf")
	checkout, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(checkout, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	files["go.sum"] = string(sums)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"mod", "init", "example.com/holdfast-plugin-shelf"},
		{"mod", "edit", "-replace", "github.com/holdfast-dr/holdfast=" + checkout},
		{"vet", "-mod=mod", "."},
		{"build", "-mod=mod"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return filepath.Join(dir, "holdfast-plugin-shelf")
}

// conforms runs the suite on a program that drives a shelf of one machine.
func conforms(t *testing.T, path string) {
	sum, err := plugin.Checksum(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	machine := `{"Name": "web-01", "CPUs": 2, "Disks": [{"ID": "vda", "SizeBytes": 1048576}], "Space": "ours"}`
	if err := os.WriteFile(filepath.Join(dir, "web-01.json"), []byte(machine), 0o600); err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(map[string]string{"dir": dir})
	if err != nil {
		t.Fatal(err)
	}
	conformance.Run(t, func(t *testing.T) conformance.Fixture {
		start := func() (*plugin.Process, error) {
			p, err := plugin.Start(t.Context(), plugin.Launch{Path: path, SHA256: sum, Settings: settings})
			if err == nil {
				t.Cleanup(func() { p.Close() })
			}
			return p, err
		}
		fresh := func() (sdk.Platform, error) {
			p, err := start()
			if err != nil {
				return nil, err
			}
			return p.Platform(), nil
		}
		platform, err := fresh()
		if err != nil {
			t.Fatal(err)
		}
		return conformance.Fixture{
			Platform: platform, Fresh: fresh, Machine: "web-01", Space: "ours", Foreign: "theirs", Epoch: 1,
			Process: func() (conformance.Process, error) {
				p, err := start()
				if err != nil {
					return conformance.Process{}, err
				}
				return conformance.Control(p), nil
			},
		}
	})
}

// TestReadmePlugin builds the plugin of README.md as a reader would, outside of
// this tree, and holds it against the contract.
func TestReadmePlugin(t *testing.T) {
	whole, _ := readmeBlocks(t)
	if n := strings.Count(whole, "\n"); n > longest {
		t.Errorf("the plugin has %d lines, more than %d", n, longest)
	}
	if formatted, err := format.Source([]byte(whole)); err != nil || string(formatted) != whole {
		t.Errorf("the plugin is not formatted: %v", err)
	}
	conforms(t, vendor(t, map[string]string{"main.go": whole}))
}

// TestReadmePluginLearns adds the blocks that follow, and has the suite see the
// ability that they bring.
func TestReadmePluginLearns(t *testing.T) {
	whole, later := readmeBlocks(t)
	files := map[string]string{"main.go": whole}
	for i, block := range later {
		text := fragment(block)
		if formatted, err := format.Source([]byte(block)); err != nil || string(formatted) != block {
			t.Errorf("block %d is not formatted: %v", i+2, err)
		}
		files["step"+string(rune('a'+i))+".go"] = text
	}
	path := vendor(t, files)
	sum, err := plugin.Checksum(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := plugin.Describe(t.Context(), path, sum)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(d.Abilities, []sdk.Ability{sdk.AbilityPower}) {
		t.Errorf("it is described with %v", d.Abilities)
	}
	conforms(t, path)
}
