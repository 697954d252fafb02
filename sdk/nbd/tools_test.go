package nbd

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/testenv"
)

// run runs a tool and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

func nbdURI(path string) string { return "nbd+unix:///disk?socket=" + path }

func TestNbdinfoReadsOurServer(t *testing.T) {
	testenv.Need(t, "nbdinfo")
	m := randomMemory(16*memoryBlock, 5)
	path := listen(t, single("disk", m.export()))
	var info struct {
		Exports []struct {
			Size       int64    `json:"export-size"`
			Contexts   []string `json:"contexts"`
			MultiConn  bool     `json:"can_multi_conn"`
			ReadOnly   bool     `json:"is_read_only"`
			Flush      bool     `json:"can_flush"`
			DF         bool     `json:"can_df"`
			Preferred  int64    `json:"block_size_preferred"`
			Structured bool     `json:"-"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", nbdURI(path))), &info); err != nil {
		t.Fatal(err)
	}
	e := info.Exports[0]
	if e.Size != 16*memoryBlock || !e.MultiConn || e.ReadOnly || !e.Flush || !e.DF || e.Preferred != 4096 {
		t.Errorf("nbdinfo saw %+v", e)
	}
	if d := cmp.Diff([]string{"base:allocation"}, e.Contexts); d != "" {
		t.Error(d)
	}
	var extents []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--map", "--json", nbdURI(path))), &extents); err != nil {
		t.Fatal(err)
	}
	q := int64(4 * memoryBlock)
	want := []struct{ Offset, Length, Type int64 }{{0, q, 0}, {q, q, 3}, {2 * q, q, 0}, {3 * q, q, 3}}
	if d := cmp.Diff(want, extents); d != "" {
		t.Error(d)
	}
}

func TestNbdcopyBothWays(t *testing.T) {
	testenv.Need(t, "nbdcopy")
	m := randomMemory(9<<20+512, 6)
	file := filepath.Join(t.TempDir(), "disk")
	run(t, "nbdcopy", nbdURI(listen(t, single("disk", m.export()))), file)
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, m.data) {
		t.Fatalf("copied out: %v", err)
	}
	back := newMemory(len(m.data))
	run(t, "nbdcopy", "--flush", file, nbdURI(listen(t, single("disk", back.export()))))
	if !bytes.Equal(back.content(), m.data) {
		t.Error("copied in: the bytes differ")
	}
	if back.flushed == 0 {
		t.Error("no flush arrived")
	}
}

func TestQemuImgConvertsBothWays(t *testing.T) {
	testenv.Need(t, "qemu-img")
	m := randomMemory(9<<20+512, 7)
	path := listen(t, single("disk", m.export()))
	file := filepath.Join(t.TempDir(), "disk.qcow2")
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "info", "--output=json", nbdURI(path))), &info); err != nil || info.Size != int64(len(m.data)) {
		t.Fatalf("qemu-img info: %+v, %v", info, err)
	}
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", nbdURI(path), file)
	back := newMemory(len(m.data))
	to := nbdURI(listen(t, single("disk", back.export())))
	run(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", file, to)
	if !bytes.Equal(back.content(), m.data) {
		t.Error("the bytes differ")
	}
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "-f", "raw", "--output=json", to)), &extents); err != nil {
		t.Fatal(err)
	}
	if len(extents) != 4 || extents[0].Zero || !extents[1].Zero || extents[2].Zero || !extents[3].Zero {
		t.Errorf("qemu-img map saw %+v", extents)
	}
}
