package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/testenv/stack"
)

var programs string // directory of the built programs

// playVar makes the test's program the demo.
const playVar = "DEMO_TEST_PLAY"

func TestMain(m *testing.M) {
	if os.Getenv(playVar) != "" {
		main()
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "hf-play-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = filepath.Join(dir, "bin")
	code := 1
	if err := stack.Build(context.Background(), programs, nil, "sim", "libvirt"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// performance is a demo that runs.
type performance struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
	text  strings.Builder
}

// play starts a demo as a leader of its own process group, as a shell does.
func play(t *testing.T, keep string) *performance {
	t.Helper()
	p := &performance{t: t, cmd: exec.Command(os.Args[0], "-bin", programs)}
	p.cmd.Env = append(os.Environ(), playVar+"=1", "KEEP="+keep)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	p.lines = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended, if all is well
		_ = p.cmd.Wait()
	})
	return p
}

// until reads what the demo prints, up to a line with this text.
func (p *performance) until(text string) {
	p.t.Helper()
	for p.lines.Scan() {
		fmt.Fprintln(&p.text, p.lines.Text())
		if strings.Contains(p.lines.Text(), text) {
			return
		}
	}
	p.t.Fatalf("the demo ended before it said %q:\n%s", text, p.text.String())
}

// descendants are the processes that the demo started, and theirs, as files
// of /proc that name their start too.
func (p *performance) descendants() []string {
	p.t.Helper()
	family := []int{p.cmd.Process.Pid}
	var found []string
	for i := 0; i < len(family); i++ {
		children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", family[i]))
		if err != nil {
			p.t.Fatal(err)
		}
		for _, file := range children {
			list, _ := os.ReadFile(file) // a thread may just have ended
			for _, child := range strings.Fields(string(list)) {
				pid, err := strconv.Atoi(child)
				if err != nil {
					p.t.Fatal(err)
				}
				family = append(family, pid)
				if life := lifeOf(child); life != "" {
					found = append(found, life)
				}
			}
		}
	}
	return found
}

// lifeOf tells a process from a later one with the same id; "" if it has ended.
func lifeOf(pid string) string {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const state, started = 0, 19
	if len(fields) <= started || fields[state] == "Z" {
		return ""
	}
	return pid + " " + fields[started]
}

// awaitDeath waits until none of the processes lives.
func awaitDeath(t *testing.T, lives []string) {
	t.Helper()
	err := stack.Until(t.Context(), "the end of the demo's processes", func() (bool, error) {
		left := slices.DeleteFunc(slices.Clone(lives), func(life string) bool {
			pid, _, _ := strings.Cut(life, " ")
			return lifeOf(pid) != life
		})
		return len(left) == 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// places are the directories that the demo printed.
func (p *performance) places() []string {
	found := regexp.MustCompile(`/[^ '=]*/hf(?:-demo|site)-[^/ ']*`).FindAllString(p.text.String(), -1)
	slices.Sort(found)
	return slices.Compact(found)
}

// What a kept demo prints can be typed as it stands, and Ctrl-C leaves no
// process, no mount and no file.
func TestKeptDemo(t *testing.T) {
	p := play(t, "1")
	p.until("holdfast audit")
	_, commands, found := strings.Cut(p.text.String(), "To try it")
	if !found {
		t.Fatalf("the demo says nothing to try:\n%s", p.text.String())
	}
	script := "set -e\ncd " + t.TempDir() + "\n"
	typed := 0
	for line := range strings.Lines(commands) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "holdfast ") || strings.HasPrefix(line, "export ") || strings.HasPrefix(line, "set ") {
			script += line + "\n"
			typed++
		}
	}
	if out, err := exec.CommandContext(t.Context(), "bash", "-c", script).CombinedOutput(); err != nil || typed < 12 {
		t.Errorf("%d commands to try: %v\n%s\n%s", typed, err, script, out)
	}

	lives, places := p.descendants(), p.places()
	if len(lives) < 3 || len(places) < 1 {
		t.Errorf("processes %q and places %q of a kept demo", lives, places)
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for p.lines.Scan() {
		fmt.Fprintln(&p.text, p.lines.Text())
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the demo after Ctrl-C: %v\n%s", err, p.text.String())
	}
	awaitDeath(t, lives)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range places {
		if _, err := os.Stat(place); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", place, err)
		}
		if bytes.Contains(mounts, []byte(place)) {
			t.Errorf("%s is still mounted", place)
		}
	}
}

// A demo that is killed takes its processes with it, and the next one removes
// its files.
func TestKilledDemo(t *testing.T) {
	p := play(t, "")
	p.until("3. First backup")
	lives := p.descendants()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitDeath(t, lives)
	if err := p.cmd.Wait(); err == nil {
		t.Error("a killed demo ended well")
	}
	var dir string
	for _, place := range p.places() {
		if strings.Contains(place, dirPrefix) {
			dir = place
		} else {
			defer os.RemoveAll(place) // what the next site would do
		}
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the killed demo's directory: %v\n%s", err, p.text.String())
	}
	next, err := newDirectory()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := next.remove(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the next demo left %s: %v", dir, err)
	}
	// A demo that lives is left alone.
	if err := removeDead(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(next.path); err != nil {
		t.Errorf("a living demo's directory: %v", err)
	}
}
