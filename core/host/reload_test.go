package host

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// states are the states of an endpoint, oldest process first.
func states(t *testing.T, h *Host, name string) (list []EndpointState) {
	t.Helper()
	s, err := h.Status(t.Context(), "hostile")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range s.Endpoints {
		if e.Endpoint == name {
			list = append(list, e)
		}
	}
	return list
}

func TestReloadRunsTwoVersionsSideBySide(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	e := s.bad("", "")
	before := open(t, s.Host, e)
	r, err := before.OpenDisk(t.Context(), badSnap, "vda")
	if err != nil {
		t.Fatal(err)
	}
	first := pid(t, before)
	install(t, s.dir, "2.0.0")
	done, err := s.Reload(t.Context(), ReloadRequest{Plugin: "hostile", Drain: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if done.From != "1.0.0" || done.To != "2.0.0" || !done.Changed || strings.Join(done.Tried, " ") != "bad" || strings.Join(done.Drains, " ") != "bad" {
		t.Errorf("reloaded: %+v", done)
	}
	after := open(t, s.Host, e)
	second := pid(t, after)
	if second == first || pid(t, before) != first {
		t.Fatalf("processes %d, then %d and %d; want both versions, each for its own", first, pid(t, before), second)
	}
	if _, err := r.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("the disk that was open: %v", err)
	}
	list := states(t, s.Host, "bad")
	if len(list) != 2 || list[0].State != StateDraining || list[0].Version != "1.0.0" || list[0].OpenDisks != 1 || list[0].Drains.IsZero() ||
		list[1].State != StateRunning || list[1].Version != "2.0.0" {
		t.Errorf("states %+v", list)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	before.release()
	until(t, "the end of the version that nobody uses", func() bool { return ended(first) })
	if list := states(t, s.Host, "bad"); len(list) != 1 || list[0].Version != "2.0.0" {
		t.Errorf("states after the drain %+v", list)
	}
	if _, err := after.Probe(t.Context(), sdk.Subject{}); err != nil {
		t.Error(err)
	}
}

func TestDrainMovesWhoStays(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	e := s.bad("", "")
	p := open(t, s.Host, e)
	first := pid(t, p)
	r, err := p.OpenDisk(t.Context(), badSnap, "vda")
	if err != nil {
		t.Fatal(err)
	}
	install(t, s.dir, "2.0.0")
	if _, err := s.Reload(t.Context(), ReloadRequest{Plugin: "hostile", Drain: -1}); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the old version", func() bool { return ended(first) })
	if list := states(t, s.Host, "bad"); len(list) != 1 || list[0].Version != "2.0.0" || list[0].Users != 1 {
		t.Errorf("states before the next call: %+v", list)
	}
	if _, err := r.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("a disk of the old version can be read")
	}
	_ = r.Close()
	if _, err := p.Probe(t.Context(), sdk.Subject{}); err != nil {
		t.Errorf("the call after the move: %v", err)
	}
	if list := states(t, s.Host, "bad"); len(list) != 1 || list[0].Version != "2.0.0" || list[0].Users != 1 {
		t.Errorf("states %+v", list)
	}
	second := pid(t, p)
	p.release()
	h := s.Host
	h.mutex.Lock()
	users := len(h.slots[e.ID].users)
	h.mutex.Unlock()
	if users != 0 || second == first {
		t.Errorf("%d users after the release, process %d", users, second)
	}
}

// A process that dies while it drains is followed by the new version.
func TestDeathInADrainEndsIt(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	p := open(t, s.Host, s.bad("", ""))
	install(t, s.dir, "2.0.0")
	if _, err := s.Reload(t.Context(), ReloadRequest{Plugin: "hostile", Drain: time.Hour}); err != nil {
		t.Fatal(err)
	}
	kill(t, p)
	if _, err := p.Probe(t.Context(), sdk.Subject{}); err != nil {
		t.Fatal(err)
	}
	if list := states(t, s.Host, "bad"); len(list) != 1 || list[0].State != StateRunning || list[0].Version != "2.0.0" {
		t.Errorf("states %+v", list)
	}
}

func TestReloadRollsBack(t *testing.T) {
	for version, want := range map[string]string{"refuse": "this version cannot work", "die": "start plugin", "raw-other": "says that it is", "raw-lies": "does not work"} {
		t.Run(version, func(t *testing.T) {
			s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
			p := open(t, s.Host, s.bad("", ""))
			first := pid(t, p)
			install(t, s.dir, version)
			var err error
			s.beside(func() { _, err = s.Reload(t.Context(), ReloadRequest{Plugin: "hostile"}) })
			if err == nil || !strings.Contains(err.Error(), "version 1.0.0 stays in use") || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "endpoint bad") {
				t.Errorf("reload to a bad version: %v, want %q", err, want)
			}
			if pid(t, p) != first {
				t.Error("the old version was ended")
			}
			if err := probe(t.Context(), p); err != nil {
				t.Errorf("the old version: %v", err)
			}
			list := states(t, s.Host, "bad")
			if len(list) != 1 || list[0].State != StateRunning || list[0].Version != "1.0.0" {
				t.Errorf("states %+v", list)
			}
			enabled, err := s.store.Plugin(t.Context(), "hostile", runtime.GOARCH)
			if err != nil || enabled.Version != "1.0.0" {
				t.Errorf("enabled is %s, %v", enabled.Version, err)
			}
			left, err := filepath.Glob(filepath.Join(s.shared, "plugin-dir*"))
			if err != nil || len(left) > 1 {
				t.Errorf("%v: the trial left something", left)
			}
		})
	}
}

func TestReloadOfWhatIsNotEnabled(t *testing.T) {
	h := newHost(t, Options{})
	if _, err := h.Reload(t.Context(), ReloadRequest{Plugin: "none"}); !errors.Is(err, sdk.ErrNotFound) {
		t.Errorf("reload: %v, want ErrNotFound", err)
	}
	if _, err := h.Reload(t.Context(), ReloadRequest{Plugin: "sim", Drain: 2 * MaxDrain}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("reload with an endless drain: %v, want ErrInvalid", err)
	}
	h.mutex.Lock()
	h.reloading["sim"] = true
	h.mutex.Unlock()
	if _, err := h.Reload(t.Context(), ReloadRequest{Plugin: "sim"}); !errors.Is(err, sdk.ErrBusy) {
		t.Errorf("reload during a reload: %v, want ErrBusy", err)
	}
}

// TestReloadUnderFire reloads while jobs of the endpoint open, call and release.
func TestReloadUnderFire(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	e := s.bad("", "")
	// It runs before its file is exchanged: what starts between that and the
	// reload is not the program that was enabled, and is refused.
	_, release, err := s.Open(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	release()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	const workers = 3
	for range workers {
		go func() {
			for ctx.Err() == nil {
				p, release, err := s.Open(t.Context(), e)
				if err == nil {
					for range 5 {
						err = errors.Join(err, probe(t.Context(), p.(*Platform)))
					}
					release()
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for _, version := range []string{"2.0.0", "2.0.1", "2.0.2"} {
		install(t, s.dir, version)
		if _, err := s.Reload(t.Context(), ReloadRequest{Plugin: "hostile", Drain: time.Minute}); err != nil {
			t.Error(err)
		}
	}
	stop()
	for range workers {
		if err := <-done; err != nil {
			t.Errorf("a job during reloads: %v", err)
		}
	}
	until(t, "one version alone", func() bool { return len(states(t, s.Host, "bad")) == 1 })
	if e := states(t, s.Host, "bad")[0]; e.Version != "2.0.2" || syscall.Kill(e.PID, 0) != nil {
		t.Errorf("state %+v", e)
	}
}
