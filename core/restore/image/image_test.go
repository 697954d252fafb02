package image_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/core/restore/image"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv"
)

// piece is a range of a disk that is written.
type piece struct {
	off  int64
	data []byte
}

func pieces(seed uint64, size int64) []piece {
	r := rand.New(rand.NewPCG(seed, 0))
	var list []piece
	for at := int64(0); at < size; {
		at += r.Int64N(3) * 64 << 10 // often none: contiguous
		n := min(size-at, 4096*(1+r.Int64N(200)))
		if n <= 0 {
			break
		}
		data := make([]byte, n)
		for i := range data {
			switch at / (1 << 20) % 3 {
			case 0:
				data[i] = byte(r.Uint32())
			case 1:
				data[i] = byte(i / 500)
			}
		}
		list = append(list, piece{at, data})
		at += n
		if r.IntN(4) == 0 {
			at += r.Int64N(8<<20) / 4096 * 4096
		}
	}
	return list
}

func disk(size int64, list []piece) []byte {
	b := make([]byte, size)
	for _, p := range list {
		copy(b[p.off:], p.data)
	}
	return b
}

func write(t *testing.T, path string, format image.Format, size int64, list []piece) {
	t.Helper()
	w, err := image.Create(path, format, size)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if _, err := w.WriteAt(p.data, p.off); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(testenv.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out
}

// TestQEMUReadsWhatWeWrite is the judge of all formats: qemu-img checks each
// image and converts it back to the same bytes.
func TestQEMUReadsWhatWeWrite(t *testing.T) {
	testenv.Need(t, "qemu-img")
	const mib = 1 << 20
	cases := map[string]struct {
		size int64
		list []piece
	}{
		"empty":             {64 * mib, nil},
		"one sector":        {512, []piece{{0, []byte("boot")}}},
		"last byte":         {8*mib + 4096, []piece{{8*mib + 4095, []byte{7}}}},
		"odd size":          {3*mib + 100, []piece{{0, []byte{1}}, {3*mib + 99, []byte{2}}}},
		"many":              {70 * mib, pieces(1, 70*mib)},
		"several tables":    {100 * mib, append(pieces(2, 10*mib), piece{33 * mib, []byte{1, 2, 3}}, piece{99 * mib, []byte{4}})},
		"written in bits":   {2 * mib, []piece{{100, []byte{1}}, {101, []byte{2}}, {70000, []byte{3}}, {300000, []byte{4}}}},
		"nothing at all":    {0, nil},
		"zeroes as content": {mib, []piece{{0, make([]byte, mib)}}},
	}
	for name, c := range cases {
		for _, format := range image.Formats() {
			t.Run(name+"/"+string(format), func(t *testing.T) {
				if c.size == 0 && format == image.VMDK {
					t.Skip("QEMU opens no empty VMDK")
				}
				path, back := filepath.Join(t.TempDir(), "disk.img"), filepath.Join(t.TempDir(), "back.raw")
				write(t, path, format, c.size, c.list)
				if format == image.QCOW2 {
					run(t, "qemu-img", "check", "-f", "qcow2", path)
				}
				run(t, "qemu-img", "convert", "-f", string(format), "-O", "raw", path, back)
				got, err := os.ReadFile(back)
				if err != nil {
					t.Fatal(err)
				}
				want := disk((c.size+511)/512*512, c.list)
				if format == image.Raw {
					got = append(got, make([]byte, max(0, len(want)-len(got)))...)
				}
				if !slices.Equal(got, want) {
					t.Errorf("%d bytes come back, and they differ from the %d written", len(got), len(want))
				}
			})
		}
	}
}

// TestLargeDiskIsThin writes little to a large disk, which needs several L2
// tables and grain directories.
func TestLargeDiskIsThin(t *testing.T) {
	testenv.Need(t, "qemu-img")
	const gib = 1 << 30
	for _, format := range image.Formats() {
		t.Run(string(format), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk."+string(format))
			write(t, path, format, 40*gib, []piece{{0, []byte("a")}, {9 * gib, []byte("b")}, {40*gib - 1, []byte("c")}})
			var info struct {
				Format  string `json:"format"`
				Virtual int64  `json:"virtual-size"`
				Actual  int64  `json:"actual-size"`
			}
			if err := json.Unmarshal(run(t, "qemu-img", "info", "--output=json", path), &info); err != nil {
				t.Fatal(err)
			}
			if info.Format != string(format) || info.Virtual != 40*gib || info.Actual > 8<<20 {
				t.Errorf("qemu-img info says %+v", info)
			}
			if format == image.QCOW2 {
				run(t, "qemu-img", "check", path)
			}
			out := filepath.Join(t.TempDir(), "back.raw")
			run(t, "qemu-img", "convert", "-O", "raw", path, out)
			f, err := os.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for off, want := range map[int64]byte{0: 'a', 9 * gib: 'b', 40*gib - 1: 'c', 5 * gib: 0} {
				var b [1]byte
				if _, err := f.ReadAt(b[:], off); err != nil || b[0] != want {
					t.Errorf("byte at %d is %q (%v), want %q", off, b[0], err, want)
				}
			}
		})
	}
}

func TestSequentialImagesRefuseToGoBack(t *testing.T) {
	for _, format := range []image.Format{image.QCOW2, image.VMDK} {
		w, err := image.Create(filepath.Join(t.TempDir(), "x"), format, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if w.Shape() != sdk.ShapeSequential {
			t.Errorf("%s: shape %s", format, w.Shape())
		}
		if _, err := w.WriteAt([]byte{1}, 5000); err != nil {
			t.Error(err)
		}
		if err := w.Zero(6000, 4096); err != nil {
			t.Error(err)
		}
		if _, err := w.WriteAt([]byte{1}, 7000); !errors.Is(err, image.ErrOrder) {
			t.Errorf("%s: WriteAt backwards = %v", format, err)
		}
		if _, err := w.WriteAt([]byte{1}, 1<<20); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("%s: WriteAt beyond the end = %v", format, err)
		}
		if err := w.Flush(); err != nil {
			t.Error(err)
		}
		if _, err := w.WriteAt([]byte{1}, 900000); !errors.Is(err, image.ErrOrder) {
			t.Errorf("%s: WriteAt after Flush = %v", format, err)
		}
	}
}

func TestRawIsRewritable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw")
	w, err := image.Create(path, image.Raw, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []error{
		func() error { _, err := w.WriteAt([]byte("xyz"), 500); return err }(),
		func() error { _, err := w.WriteAt([]byte("abc"), 0); return err }(),
		w.Zero(501, 1), w.Flush(), w.Close(),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 1<<20 || string(b[:3]) != "abc" || string(b[500:503]) != "x\x00z" {
		t.Errorf("%d bytes, %q, %q, %v", len(b), b[:3], b[500:503], err)
	}
}

func TestUnknownFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if _, err := image.Create(path, "vhd", 1); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("Create = %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was made")
	}
}
