package site_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

func TestMain(m *testing.M) {
	if os.Getenv("SITE_TEST_ABANDON") != "" {
		abandon()
	}
	os.Exit(m.Run())
}

func start(t *testing.T, o site.Options) *site.Site {
	t.Helper()
	testenv.Need(t, site.Tools...)
	testenv.Need(t, guest.Tools...)
	s, err := site.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func define(t *testing.T, s *site.Site, spec site.Spec) site.Guest {
	t.Helper()
	var err error
	if spec.Image, err = guest.Build(t.Context(), guest.Options{}); err != nil {
		testenv.Lack(t, "%v", err)
	}
	g, err := s.Define(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGuestLives(t *testing.T) {
	s := start(t, site.Options{})
	g := define(t, s, site.Spec{Name: "alpha"})
	ctx := t.Context()
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	run := func(command string) string {
		t.Helper()
		out, err := g.Run(ctx, command)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	run("note first words && counter on")
	before := run("counter show")
	if err := s.RestartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	run("counter off")
	if after := run("counter show"); after == before {
		t.Errorf("the counter stood still at %s", after)
	}
	if got := run("notes"); got != "vda: first words\nvdb: first words" {
		t.Errorf("notes: %q", got)
	}
	if _, err := g.Run(ctx, "false"); err == nil {
		t.Error("a failed command passed for a good one")
	}
	if err := g.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got := run("cat /var/boots"); got != "2" {
		t.Errorf("boots: %q", got)
	}
	if err := g.KillQEMU(ctx); err != nil {
		t.Fatal(err)
	}
	left, err := g.Leftovers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"file default/alpha-vda.qcow2", "file default/alpha-vdb.qcow2", "machine alpha"}
	if !slices.Equal(left, want) {
		t.Errorf("leftovers: %q", left)
	}
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRemoteListeners(t *testing.T) {
	testenv.NeedRoot(t)
	s := start(t, site.Options{Remote: true})
	for _, uri := range []string{s.TCPURI, s.TLSURI} {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialTimeout("tcp", u.Host, 5*time.Second)
		if err != nil {
			t.Errorf("%s: %v", uri, err)
			continue
		}
		conn.Close()
	}
	if len(s.Nets) != 2 {
		t.Errorf("networks: %q", s.Nets)
	}
}

// abandon starts a site and waits to be killed.
func abandon() {
	s, err := site.Start(context.Background(), site.Options{})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println(s.Dir)
	fmt.Println(s.Boot)
	select {}
}

func TestSiteEndsWithItsProgram(t *testing.T) {
	testenv.Need(t, site.Tools...)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SITE_TEST_ABANDON=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	read := func() string {
		lines.Scan()
		return lines.Text()
	}
	dir, boot := read(), read()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed, as intended
	if !filepath.IsAbs(dir) {
		t.Fatalf("the program said %q", dir)
	}
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	deadline := time.After(time.Minute)
	for running(boot) {
		select {
		case <-deadline:
			t.Fatal("the site outlives its program")
		case <-look.C:
		}
	}
	start(t, site.Options{}) // removes what is left
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the dead program's directory is still there: %v", err)
	}
}

func running(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
