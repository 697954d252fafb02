package image

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestRawMixesBothWaysOfWriting writes whole blocks and odd pieces side by side
// from several goroutines: on the file system of the tests, in memory, and where
// the kernel refuses what was thought to be aligned.
func TestRawMixesBothWaysOfWriting(t *testing.T) {
	folders := []string{t.TempDir()}
	if shm, err := os.MkdirTemp("/dev/shm", "holdfast-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(shm) })
		folders = append(folders, shm)
	}
	const piece, size = 256 << 10, 8<<20 + 1000
	want := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want) // never fails
	clear(want[2<<20 : 3<<20])
	for _, folder := range folders {
		for _, unit := range []uintptr{directUnit, 1} {
			path := filepath.Join(folder, "disk")
			opened, err := Create(path, Raw, size)
			if err != nil {
				t.Fatal(err)
			}
			w := opened.(*raw)
			w.unit = unit
			var all sync.WaitGroup
			for off := 0; off < size; off += piece {
				all.Go(func() {
					// One byte further on in memory, every other piece is not aligned.
					odd := off / piece % 2
					b := append(make([]byte, odd, piece+1), want[off:min(size, off+piece)]...)[odd:]
					if off >= 2<<20 && off < 3<<20 {
						return
					}
					if n, err := w.WriteAt(b, int64(off)); err != nil || n != len(b) {
						t.Errorf("WriteAt(%d) = %d, %v", off, n, err)
					}
				})
			}
			all.Wait()
			if err := w.Flush(); err != nil {
				t.Error(err)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("in %s with blocks of %d: %d bytes, %v, that differ", folder, unit, len(got), err)
			}
			t.Logf("%s: past the page cache %t, refused %t", folder, w.direct != nil, w.denied.Load())
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}
