package main

import (
	"encoding/json"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// command runs holdfast in this process and answers what it printed.
func newPlugin(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	var stdout, stderr strings.Builder
	code = run(t.Context(), append([]string{"plugin", "new"}, args...),
		console{in: strings.NewReader(""), out: &stdout, err: &stderr, env: func(string) string { return "" }})
	return stdout.String(), stderr.String(), code
}

// checkoutDir is the checkout that this test runs in.
func checkoutDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestNewPluginBuildsAndConforms is a vendor's first minutes, outside of this
// tree and without a network: a new plugin, make, and make verify, twice.
func TestNewPluginBuildsAndConforms(t *testing.T) {
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build holdfast: %v\n%s", err, out)
	}
	dir := filepath.Join(t.TempDir(), "holdfast-plugin-acme-2")
	vendor := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "GOPROXY=off", "GOFLAGS=", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	if out, err := exec.Command(filepath.Join(bin, "holdfast"), "plugin", "new", "acme-2", "--dir", dir, "--replace", checkoutDir(t)).CombinedOutput(); err != nil {
		t.Fatalf("plugin new: %v\n%s", err, out)
	}
	vendor("make")
	for range 2 {
		out := vendor("make", "verify")
		if !regexp.MustCompile(`(?m)^source/killed-in-snapshot +kept`).MatchString(out) || strings.Contains(out, "BROKEN") {
			t.Errorf("make verify:\n%s", out)
		}
	}
	if out := vendor("./holdfast-plugin-acme-2", "describe"); !strings.Contains(out, `"name": "acme-2"`) {
		t.Errorf("describe:\n%s", out)
	}
	if out := vendor("make", "checksum"); !strings.Contains(out, "holdfast-plugin-acme-2") {
		t.Errorf("make checksum:\n%s", out)
	}

	// A vendor compiles the contract, not the product.
	ours := 0
	for dependency := range strings.Lines(vendor("go", "list", "-deps", "-test", "./...")) {
		dependency, _, _ = strings.Cut(strings.TrimSpace(dependency), " ")
		if room, ok := strings.CutPrefix(dependency, sdkModule); ok {
			ours++
			if room != "/sdk" && !strings.HasPrefix(room, "/sdk/") {
				t.Errorf("a plugin that imports the SDK also gets %s", dependency)
			}
		}
	}
	if ours == 0 {
		t.Error("the new plugin does not import the SDK")
	}
}

// TestSDKBringsNothingOfTheCore looks at the SDK as a vendor's module gets it.
func TestSDKBringsNothingOfTheCore(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./sdk/...")
	cmd.Dir = checkoutDir(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	dependencies := strings.Fields(string(out))
	if !slices.Contains(dependencies, sdkModule+"/sdk/plugin") {
		t.Fatalf("go list says:\n%s", out)
	}
	for _, dependency := range dependencies {
		if strings.HasPrefix(dependency, sdkModule) && !strings.HasPrefix(dependency, sdkModule+"/sdk") {
			t.Errorf("the SDK imports %s", dependency)
		}
	}
	cmd = exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./sdk")
	cmd.Dir = checkoutDir(t)
	if out, err = cmd.Output(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(out)); !slices.Equal(got, []string{sdkModule + "/sdk"}) {
		t.Errorf("package sdk is not of the standard library alone: %v", got)
	}
}

func TestNewPluginRefuses(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis.txt"), []byte("years"), 0o600); err != nil {
		t.Fatal(err)
	}
	ignored := t.TempDir()
	if err := os.WriteFile(filepath.Join(ignored, ".gitignore"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no name":             {nil, exitUsage, "accepts 1 arg"},
		"capitals":            {[]string{"Acme"}, exitUsage, "lower-case letters"},
		"a path":              {[]string{"../acme"}, exitUsage, "lower-case letters"},
		"a digit first":       {[]string{"3par"}, exitUsage, "begins with a letter"},
		"too long":            {[]string{strings.Repeat("a", 64)}, exitUsage, "cannot be a plugin's name"},
		"a bad module":        {[]string{"acme", "--module", "https://example.com/acme"}, exitUsage, "path of a Go module"},
		"a module of two":     {[]string{"acme", "--module", "example.com/a\nreplace"}, exitUsage, "path of a Go module"},
		"our module":          {[]string{"acme", "--module", sdkModule + "/plugins/acme"}, exitUsage, "author's own"},
		"a directory in use":  {[]string{"acme", "--dir", full}, exitFailed, "is not empty: it has thesis.txt"},
		"a file of ours":      {[]string{"acme", "--dir", ignored}, exitFailed, "is not empty: it has .gitignore"},
		"a file in the place": {[]string{"acme", "--dir", filepath.Join(full, "thesis.txt")}, exitFailed, "thesis.txt"},
		"no checkout":         {[]string{"acme", "--dir", t.TempDir(), "--replace", full}, exitFailed, "no checkout of Holdfast"},
	} {
		out, errs, code := newPlugin(t, c.args...)
		if code != c.code || !strings.Contains(errs, c.says) || out != "" {
			t.Errorf("%s: exit code %d and %q, want %d and %q", name, code, errs, c.code, c.says)
		}
	}
	if text, err := os.ReadFile(filepath.Join(ignored, ".gitignore")); err != nil || string(text) != "mine" {
		t.Errorf("a refused command changed a file: %q, %v", text, err)
	}
	for _, dir := range []string{full, ignored} {
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("a refused command left %v", left)
		}
	}
}

// TestNewPluginFiles looks at what is written for a release, for something
// between two releases, and with a checkout.
func TestNewPluginFiles(t *testing.T) {
	defer func(v string) { version = v }(version)
	write := func(args ...string) (dir, out string) {
		t.Helper()
		dir = filepath.Join(t.TempDir(), "deep", "down")
		out, errs, code := newPlugin(t, append([]string{"acme", "--dir", dir}, args...)...)
		if code != exitDone {
			t.Fatal(errs)
		}
		return dir, out
	}
	read := func(dir, name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}

	for v, want := range map[string]string{
		"v1.4.0": "v1.4.0", "v2.0.0-rc.1": "v2.0.0-rc.1",
		"": "", "826496b": "", "v1.4.0-3-g826496b": "", "v1.4.0-dirty": "",
	} {
		version = v
		dir, out := write("--module", "git.example.com/storage/acme")
		mod := read(dir, "go.mod")
		if !strings.HasPrefix(mod, "module git.example.com/storage/acme\n") || strings.Contains(mod, "replace") {
			t.Errorf("version %q: go.mod is\n%s", v, mod)
		}
		if got := strings.Contains(mod, "\nrequire "+sdkModule+" "+want+"\n"); got != (want != "") {
			t.Errorf("version %q: go.mod is\n%s", v, mod)
		}
		if strings.Contains(out, "-replace") != (want == "") {
			t.Errorf("version %q: it says\n%s", v, out)
		}
	}

	dir, _ := write("--replace", checkoutDir(t))
	mod := read(dir, "go.mod")
	if !strings.Contains(mod, "\nreplace "+sdkModule+" => "+checkoutDir(t)+"\n") {
		t.Errorf("go.mod is\n%s", mod)
	}
	_, ours, _ := strings.Cut(read(checkoutDir(t), "go.mod"), "\ngo ")
	_, theirs, _ := strings.Cut(mod, "\ngo ")
	if ours, theirs := strings.Fields(ours)[0], strings.Fields(theirs)[0]; ours != theirs {
		t.Errorf("a new plugin is written in Go %s, the SDK in %s", theirs, ours)
	}
	names := []string{".gitignore", "Makefile", "go.mod", "go.sum", "plugin.go", "plugin_test.go"}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		if i >= len(names) || e.Name() != names[i] {
			t.Errorf("file %s, want %v", e.Name(), names)
		}
		if text := read(dir, e.Name()); strings.Contains(text, "[[") && e.Name() != "go.sum" {
			t.Errorf("%s was not filled in:\n%s", e.Name(), text)
		} else if filepath.Ext(e.Name()) == ".go" {
			if formatted, err := format.Source([]byte(text)); err != nil || string(formatted) != text {
				t.Errorf("%s is not formatted: %v", e.Name(), err)
			}
		}
	}

	repository := t.TempDir()
	if err := os.Mkdir(filepath.Join(repository, ".git"), 0o700); err != nil {
		t.Fatal(err)
	}
	out, errs, code := newPlugin(t, "acme", "--dir", repository, "-o", "json")
	var said struct{ Name, Directory, Module string }
	if err := json.Unmarshal([]byte(out), &said); err != nil || code != exitDone ||
		said.Name != "acme" || said.Directory != repository || said.Module != "example.com/holdfast-plugin-acme" {
		t.Errorf("in an empty repository: %d, %s%s, %v", code, out, errs, err)
	}
}
