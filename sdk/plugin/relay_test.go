package plugin_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// joined is a pair of connected sockets.
func joined(t testing.TB) (ours, theirs net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return conns[0], conns[1]
}

// relayed starts this test binary as a plugin behind a relay, both ends of
// which are here.
func relayed(t testing.TB, l plugin.Launch) (*plugin.Process, *plugin.Relay) {
	t.Helper()
	return relayedWith(t, l, func(string) {})
}

// relayedWith also tells which disks are dialled.
func relayedWith(t testing.TB, l plugin.Launch, dialled func(handle string)) (*plugin.Process, *plugin.Relay) {
	t.Helper()
	log, out := io.Pipe()
	r, err := plugin.StartRelay(t.Context(), plugin.Launch{Path: l.Path, SHA256: l.SHA256, RunDir: l.RunDir}, out)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-r.Done()
		_ = out.Close()
	}()
	var disks sync.WaitGroup
	t.Cleanup(func() {
		_ = r.Close()
		disks.Wait()
	})
	p, err := plugin.Attach(t.Context(), plugin.Attachment{
		Plugin: "test", PID: r.PID(), Log: log, Ended: r.Done(), End: func() { go r.Close() },
		Calls: func(context.Context) (net.Conn, error) {
			ours, theirs := joined(t)
			r.Serve(theirs)
			return ours, nil
		},
		Disk: func(ctx context.Context, handle string) (net.Conn, error) {
			dialled(handle)
			disk, err := r.Dial(ctx, handle)
			if err != nil {
				return nil, err
			}
			ours, theirs := joined(t)
			splice := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_ = to.Close()
			}
			disks.Go(func() { splice(theirs, disk) })
			disks.Go(func() { splice(disk, theirs) })
			return ours, nil
		},
	}, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p, r
}

// lab is a simulated hypervisor with one machine of one disk.
func lab(t testing.TB) (dir string, machine sdk.MachineID, content []byte) {
	t.Helper()
	dir = t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "web", DiskBytes: []int64{4 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	content = make([]byte, 4<<20)
	rand.Read(content)
	if err := hv.WriteDisk(m.ID, m.Disks[0].ID, 0, content); err != nil {
		t.Fatal(err)
	}
	return dir, m.ID, content
}

func TestRelayCarriesDisks(t *testing.T) {
	dir, machine, content := lab(t)
	p, _ := relayed(t, launch(t, map[string]any{"dir": dir}))
	source, ok := sdk.As[sdk.Source](p.Platform())
	if !ok {
		t.Fatal("no source behind the relay")
	}
	op := sdk.Op{ID: "op-1", Epoch: 1}
	snap, err := source.Snapshot(t.Context(), op, sdk.SnapshotRequest{Machine: machine})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := source.OpenDisk(t.Context(), snap, snap.Machine.Disks[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	got := make([]byte, len(content))
	if _, err := disk.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("other bytes came through")
	}
}

// A relay dials where its plugin said that a disk is, as long as it is open,
// and nowhere else.
func TestRelayIsNoOpenProxy(t *testing.T) {
	dir, machine, _ := lab(t)
	var opened string
	p, r := relayedWith(t, launch(t, map[string]any{"dir": dir}), func(handle string) { opened = handle })
	for _, handle := range []string{"", "unknown", "/etc/passwd", "127.0.0.1:22", filepath.Join(dir, "x.sock")} {
		if conn, err := r.Dial(t.Context(), handle); !errors.Is(err, sdk.ErrDenied) {
			t.Errorf("dial %q: %v, %v; want ErrDenied", handle, conn, err)
		}
	}
	source, _ := sdk.As[sdk.Source](p.Platform())
	snap, err := source.Snapshot(t.Context(), sdk.Op{ID: "op-1", Epoch: 1}, sdk.SnapshotRequest{Machine: machine})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := source.OpenDisk(t.Context(), snap, snap.Machine.Disks[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := r.Dial(t.Context(), opened); err != nil {
		t.Errorf("dial an open disk: %v", err)
	} else {
		_ = conn.Close()
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Dial(t.Context(), opened); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("dial a closed disk: %v, want ErrDenied", err)
	}
}

// Only the contract is relayed, not what else a process of go-plugin serves.
func TestRelayPassesTheContractOnly(t *testing.T) {
	_, r := relayed(t, launch(t, map[string]any{"dir": t.TempDir()}))
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			ours, theirs := joined(t)
			r.Serve(theirs)
			return ours, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "plugin"})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("the health service of go-plugin: %v, want Unimplemented", err)
	}
}

func TestRelayedProcessThatDies(t *testing.T) {
	p, r := relayed(t, launch(t, map[string]any{"dir": t.TempDir()}))
	if err := syscall.Kill(r.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if _, err := probe(p, ""); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("a call after the end: %v, want ErrUnavailable", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestRelayRefusesAnotherProgram(t *testing.T) {
	l := launch(t, nil)
	l.SHA256 = strings.Repeat("0", 64)
	if r, err := plugin.StartRelay(t.Context(), l, io.Discard); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("start with another checksum: %v, %v; want ErrDenied", r, err)
	}
}

func TestRelayedLogHidesSecrets(t *testing.T) {
	const secret = "correct horse battery"
	var log logged
	l := launch(t, map[string]any{"dir": t.TempDir(), "password": secret})
	l.Log = log.logger()
	p, _ := relayed(t, l)
	if _, err := probe(p, "leak"); !errors.Is(err, sdk.ErrDenied) || strings.Contains(err.Error(), secret) {
		t.Errorf("a leaking error: %v", err)
	}
	until(t, "the plugin's log", func() bool { return strings.Contains(log.String(), "raw line with") })
	if strings.Contains(log.String(), secret) {
		t.Error("the log holds a secret")
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "plugin ended") {
		t.Error("its end is not in the log")
	}
}
