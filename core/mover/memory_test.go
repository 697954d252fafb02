//go:build linux

package mover_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// synthetic is a large disk that is computed: stretches of a chunk's size, one
// of every so many with content, half of it noise and half text, all different.
type synthetic struct {
	size  int64
	every int64
	round byte // changes one of 50 stretches with content
	noise []byte
}

func newSynthetic(size, every int64) *synthetic {
	noise := content(2*chunk.Size, -1)
	for i := chunk.Size; i < len(noise); i++ {
		noise[i] = "the quick brown fox "[noise[i]%20]
	}
	return &synthetic{size: size, every: every, noise: noise}
}

func (d *synthetic) Size() int64  { return d.size }
func (d *synthetic) Close() error { return nil }

func (d *synthetic) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), d.size-off))
	for done := 0; done < n; {
		stretch, from := (off+int64(done))/chunk.Size, (off+int64(done))%chunk.Size
		part := p[done:min(n, done+int(chunk.Size-from))]
		clear(part)
		if stretch%d.every == 0 {
			copy(part, d.noise[(stretch/d.every)%2*chunk.Size+from:])
			if from == 0 && len(part) >= 16 {
				binary.LittleEndian.PutUint64(part, uint64(stretch)+1)
				if stretch/d.every%50 == 0 {
					part[15] = d.round
				}
			}
		}
		done += len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *synthetic) Extents(_ context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		for at := off; at < off+n; {
			stretch := at / chunk.Size
			end := (stretch + 1) * chunk.Size
			zero := stretch%d.every != 0
			if zero {
				end = (stretch/d.every + 1) * d.every * chunk.Size
			}
			end = min(end, off+n)
			if !yield(sdk.Extent{Offset: at, Length: end - at, Zero: zero}, nil) {
				return
			}
			at = end
		}
	}
}

func (d *synthetic) changed(context.Context) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		step := 50 * d.every * chunk.Size
		for at := int64(0); at < d.size && yield(sdk.Extent{Offset: at, Length: min(65536, d.size-at)}, nil); at += step {
		}
	}
}

const memoryVariable = "HOLDFAST_MOVER_COPY" // GiB of disk, and of how many chunks one has content

// TestMemoryHelper is the process that TestMemoryStaysFlat measures.
func TestMemoryHelper(t *testing.T) {
	gib, every, ok := strings.Cut(os.Getenv(memoryVariable), ",")
	if !ok {
		t.Skip("runs as a process of TestMemoryStaysFlat")
	}
	n, err := strconv.ParseInt(gib, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	e, err := strconv.ParseInt(every, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	disk := newSynthetic(n<<30, e)
	store := movertest.NewStore()
	store.Forgetful = true
	g := point.Geometry{SizeBytes: disk.size, ChunkSize: chunk.Size, FanOut: point.FanOut}
	to := mover.Repository{Writer: store, Reader: store, Keys: chunk.NewKeyring()}
	opts := mover.Options{VerifyChunks: -1}
	report := func(what string, stats mover.Stats, err error) {
		var u syscall.Rusage
		if err == nil {
			err = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s: read %d MiB, sent %d MiB, %v, CPU %v, slowest %s, peak %d MiB\n", what, stats.ReadBytes>>20, stats.SentBytes>>20,
			stats.Duration.Round(time.Millisecond), time.Duration(u.Utime.Nano()+u.Stime.Nano()).Round(time.Millisecond), stats.Bottleneck, peak(t))
	}
	sent, stats, err := mover.Send(t.Context(), mover.Disk{Reader: disk, Geometry: g}, to, opts)
	report("full", stats, err)
	base := point.Tree{Geometry: g, Root: sent.Root, Pages: store}
	_, stats, err = mover.Send(t.Context(), mover.Disk{Reader: disk, Geometry: g, Base: &base}, to, opts)
	report("compare", stats, err)
	disk.round++
	_, stats, err = mover.Send(t.Context(), mover.Disk{Reader: disk, Geometry: g, Base: &base, Changed: disk.changed}, to, opts)
	report("incremental", stats, err)
}

// peak is the most memory that this process ever had, in MiB. The rusage of a
// child would not do: it begins at what its parent had.
func peak(t *testing.T) (mib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &mib); err != nil {
		t.Fatal(err)
	}
	return mib >> 10
}

// TestMemoryStaysFlat copies a small and a large disk, each in a process of its
// own, and looks at the most memory that it ever had. With -short it is left
// out; HOLDFAST_MOVER_GIB=4,64 measures the sizes of DESIGN.md.
func TestMemoryStaysFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("copies several hundred MiB")
	}
	sizes := []string{"1,8", "64,512"} // 128 MiB of content in each
	if long := os.Getenv("HOLDFAST_MOVER_GIB"); long != "" {
		sizes = nil
		for _, gib := range strings.Split(long, ",") {
			n, err := strconv.Atoi(gib)
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, fmt.Sprintf("%d,%d", n, max(1, n/4))) // 4 GiB of content
		}
	}
	for _, size := range sizes {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMemoryHelper$")
		cmd.Env = append(os.Environ(), memoryVariable+"="+size)
		out, err := cmd.CombinedOutput()
		t.Logf("disk of %s GiB:\n%s", size, out)
		if err != nil {
			t.Fatal(err)
		}
		peaks := regexp.MustCompile(`peak (\d+) MiB`).FindAllStringSubmatch(string(out), -1)
		if len(peaks) != 3 {
			t.Fatalf("%d of 3 copies were measured", len(peaks))
		}
		if n, err := strconv.Atoi(peaks[2][1]); err != nil || n > 128 {
			t.Errorf("a disk of %s GiB took %d MiB of memory, want at most 128 (%v)", size, n, err)
		}
	}
}
