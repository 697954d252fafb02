package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv"
)

// background starts a server and waits until it listens.
func background(t testing.TB, socket, name string, args ...string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, stderr.String())
		}
	})
	deadline := time.Now().Add(time.Minute)
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen", name)
		}
		pause(t)
	}
}

// pause is the interval of a poll.
func pause(t testing.TB) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-t.Context().Done():
		t.Fatal("the test is over")
	}
}

func openSocket(t testing.TB, a sdk.Address) *Disk {
	t.Helper()
	a.Network = "unix"
	d, err := Open(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

const mib = 1 << 20

// dirtyImage is a 64 MiB qcow2 with data at 0 and 32 MiB, and a bitmap "changed"
// that saw the second only.
func dirtyImage(t testing.TB) string {
	t.Helper()
	testenv.Need(t, "qemu-img", "qemu-io", "qemu-nbd")
	file := filepath.Join(t.TempDir(), "disk.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file, "64M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 17 0 1M", file)
	run(t, "qemu-img", "bitmap", "--add", "--enable", "-f", "qcow2", file, "changed")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 34 32M 2M", "-c", "write -z 40M 1M", file)
	return file
}

func TestQemuServesADirtyBitmap(t *testing.T) {
	file := dirtyImage(t)
	socket := filepath.Join(t.TempDir(), "s")
	background(t, socket, "qemu-nbd", "-r", "-t", "-e", "4", "-k", socket, "-x", "disk", "-f", "qcow2", "-B", "changed", "-A", file)
	d := openSocket(t, sdk.Address{Addr: socket, Export: "disk", DirtyBitmap: "qemu:dirty-bitmap:changed", Connections: 3})
	if d.Size() != 64*mib || !d.ReadOnly() || d.Connections() != 3 {
		t.Errorf("size %d, read-only %v, %d connections", d.Size(), d.ReadOnly(), d.Connections())
	}
	want := []sdk.Extent{{Offset: 32 * mib, Length: 2 * mib}, {Offset: 40 * mib, Length: mib}}
	if diff := cmp.Diff(want, collect(t, d.Dirty(t.Context()))); diff != "" {
		t.Error(diff)
	}
	want = []sdk.Extent{
		{Offset: 0, Length: mib}, {Offset: mib, Length: 31 * mib, Zero: true},
		{Offset: 32 * mib, Length: 2 * mib}, {Offset: 34 * mib, Length: 30 * mib, Zero: true},
	}
	if diff := cmp.Diff(want, collect(t, d.Extents(t.Context(), 0, d.Size()))); diff != "" {
		t.Error(diff)
	}
	got := make([]byte, 64*mib)
	for i := range got {
		got[i] = 0xff // holes have to be filled
	}
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	expect := make([]byte, 64*mib)
	copy(expect, bytes.Repeat([]byte{17}, mib))
	copy(expect[32*mib:], bytes.Repeat([]byte{34}, 2*mib))
	if !bytes.Equal(got, expect) {
		t.Error("the bytes differ")
	}
	info, err := Inspect(t.Context(), Options{Network: "unix", Addr: socket, Export: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	contexts := []string{"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:changed"}
	if diff := cmp.Diff(contexts, info.MetaContexts); diff != "" {
		t.Error(diff)
	}
	list, err := List(t.Context(), Options{Network: "unix", Addr: socket})
	if err != nil || len(list) != 1 || list[0].Name != "disk" {
		t.Errorf("list: %v, %v", list, err)
	}
	if _, err := Dial(t.Context(), Options{Network: "unix", Addr: socket, Export: "other"}); !errors.Is(err, sdk.ErrNotFound) {
		t.Errorf("unknown export: %v", err)
	}
}

func TestQemuTakesWrites(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-nbd")
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "s")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file, "32M")
	background(t, socket, "qemu-nbd", "-t", "-k", socket, "-x", "disk", "-f", "qcow2", "--discard=unmap", file)
	d := openSocket(t, sdk.Address{Addr: socket, Export: "disk"})
	data := randomMemory(16*mib, 10).data
	if _, err := d.WriteAt(data, 1001); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(2*mib, 5*mib+7); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteThrough([]byte("through"), 31*mib+5); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := d.Trim(20*mib, mib); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 32*mib)
	copy(want[1001:], data)
	clear(want[2*mib : 7*mib+7])
	copy(want[31*mib+5:], "through")
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read back: %v", err)
	}
	if _, err := d.WriteAt([]byte{1}, 32*mib); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("write beyond the end: %v", err)
	}
}

func TestQemuDemandsTLS(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-nbd")
	ca := newAuthority(t)
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "s")
	data := randomMemory(4*mib, 11).data
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	background(t, socket, "qemu-nbd", "-r", "-t", "-e", "0", "-k", socket, "-x", "disk", "-f", "raw", "--tls-creds", "t",
		"--object", "tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir="+ca.directory(t, "server"), file)
	a := ca.address(socket, ca.issue(t))
	a.Connections = 2
	d := openSocket(t, a)
	got := make([]byte, len(data))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read: %v", err)
	}
	a.TLS = nil
	if _, err := Open(t.Context(), a); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("plaintext: %v", err)
	}
	if _, err := Open(t.Context(), ca.address(socket, identity{})); err == nil {
		t.Error("no certificate was accepted")
	}
}

func TestQemuConnectionsAboveItsLimitAreDoneWithout(t *testing.T) {
	testenv.Need(t, "qemu-nbd")
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	background(t, socket, "qemu-nbd", "-r", "-t", "-e", "1", "-k", socket, "-x", "disk", "-f", "raw", file)
	c, err := Dial(t.Context(), Options{Network: "unix", Addr: socket, Export: "disk", Connections: 2, Timeout: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if c.Connections() != 1 {
		t.Errorf("%d connections", c.Connections())
	}
	if n, err := c.ReadAt(make([]byte, 10), mib-5); n != 5 || err != io.EOF { //nolint:errorlint // io.ReaderAt promises it bare
		t.Errorf("read: %d, %v", n, err)
	}
}

// nbdkit's blocksize-policy refuses what is not aligned, and --mask-handshake
// and --no-sr make it an old server.
func TestNbdkitOldAndStrict(t *testing.T) {
	testenv.Need(t, "nbdkit")
	for name, args := range map[string][]string{
		"simple replies": {"--no-sr"},
		"oldest":         {"--no-sr", "--mask-handshake=0"},
		"strict blocks": {"--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-preferred=65536",
			"blocksize-maximum=131072", "blocksize-error-policy=error"},
		"no zeroes": {"--filter=nozero"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			args := append([]string{"-f", "-U", socket}, args...)
			if name == "strict blocks" {
				args = append(args[:4], append([]string{"memory", "8M"}, args[4:]...)...)
			} else {
				args = append(args, "memory", "8M")
			}
			background(t, socket, "nbdkit", args...)
			d := openSocket(t, sdk.Address{Addr: socket, Connections: 2})
			want := make([]byte, 8*mib)
			data := randomMemory(4*mib, 12).data
			copy(want[777:], data)
			if _, err := d.WriteAt(data, 777); err != nil {
				t.Fatal(err)
			}
			clear(want[1000:600000])
			if err := d.Zero(1000, 599000); err != nil {
				t.Fatal(err)
			}
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 8*mib-3)
			if _, err := d.ReadAt(got, 3); err != nil || !bytes.Equal(got, want[3:]) {
				t.Errorf("read back: %v", err)
			}
			total := int64(0)
			for _, e := range collect(t, d.Extents(t.Context(), 5, 8*mib-5)) {
				total += e.Length
			}
			if total != 8*mib-5 {
				t.Errorf("extents of %d bytes", total)
			}
		})
	}
}
