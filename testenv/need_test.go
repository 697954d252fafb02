package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// verdict is a testing.TB that remembers how a helper ended the test.
type verdict struct {
	testing.TB
	skipped, failed string
}

func (v *verdict) Helper() {}

func (v *verdict) Skipf(format string, args ...any) {
	v.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// judge runs a helper to its end, which may be a Goexit, and says whether it returned.
func judge(t *testing.T, helper func(testing.TB)) (v *verdict, returned bool) {
	v = &verdict{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		helper(v)
		returned = true
	}()
	<-done
	return v, returned
}

func TestMissingToolSkipsLocallyAndFailsInCI(t *testing.T) {
	need := func(t testing.TB) { Need(t, "sh", "holdfast-no-such-tool") }

	t.Setenv("CI", "")
	v, returned := judge(t, need)
	if returned || v.failed != "" || !strings.Contains(v.skipped, "holdfast-no-such-tool") || !strings.Contains(v.skipped, "setup.sh") {
		t.Errorf("locally: %+v returned=%v, want a skip that names the tool and the way to install it", v, returned)
	}
	if strings.Contains(v.skipped, "sh,") {
		t.Errorf("the message %q names a tool that is installed", v.skipped)
	}

	t.Setenv("CI", "true")
	v, returned = judge(t, need)
	if returned || v.skipped != "" || !strings.Contains(v.failed, "holdfast-no-such-tool") {
		t.Errorf("in CI: %+v returned=%v, want a failure that names the tool", v, returned)
	}
}

func TestInstalledToolLetsTheTestGoOn(t *testing.T) {
	t.Setenv("CI", "true")
	if v, returned := judge(t, func(t testing.TB) { Need(t, "sh", "env") }); !returned {
		t.Errorf("Need ended the test: %+v", v)
	}
}

func TestToolIsFoundOutsidePath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "fake"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, ok := FindTool("fake"); ok {
		t.Fatal("found a tool whose directory is nowhere")
	}
	t.Setenv("PATH", dir)
	if got, _ := FindTool("fake"); got != filepath.Join(dir, "fake") {
		t.Errorf("FindTool = %q", got)
	}
	t.Setenv("PATH", "/nonexistent")
	if _, err := os.Stat("/usr/sbin/ldconfig"); err != nil {
		t.Skip("no /usr/sbin/ldconfig on this system")
	}
	if got, _ := FindTool("ldconfig"); got == "" {
		t.Error("ldconfig is in /usr/sbin and was not found")
	}
}

func TestCacheDirIsMadeWhereAsked(t *testing.T) {
	want := filepath.Join(t.TempDir(), "a", "b")
	t.Setenv("HOLDFAST_CACHE", want)
	if got := CacheDir(); got != want {
		t.Errorf("CacheDir() = %q, want %q", got, want)
	}
	if info, err := os.Stat(want); err != nil || !info.IsDir() {
		t.Errorf("stat %s: %v", want, err)
	}
}
