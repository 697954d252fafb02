package worker

import (
	"context"
	"encoding/json"
	"os"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// BenchmarkDisk reads a disk of the same plugin here and through a worker on
// loopback, as the mover does: blocks of 1 MiB, several at once.
func BenchmarkDisk(b *testing.B) {
	const size, block = 64 << 20, 1 << 20
	dir, machine, _ := lab(b, size)
	epoch := uint64(0)
	read := func(b *testing.B, p *plugin.Process) {
		epoch++
		disk := openDisk(b, p, machine, epoch)
		defer disk.Close()
		var next atomic.Int64
		b.SetBytes(block)
		b.SetParallelism(4)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			buffer := make([]byte, block)
			for pb.Next() {
				if _, err := disk.ReadAt(buffer, next.Add(block)%size); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	l := launch(b, map[string]any{"dir": dir})
	b.Run("here", func(b *testing.B) {
		self, err := os.Executable()
		if err != nil {
			b.Fatal(err)
		}
		l := l
		l.Path = self
		p, err := plugin.Start(b.Context(), l)
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		read(b, p)
	})
	b.Run("worker", func(b *testing.B) {
		h := open(b)
		h.employ(b, h.enrol(b, "w1"))
		h.connected(b, "w1")
		read(b, h.start(b, "w1", l))
	})
}

// BenchmarkCall is the way there and back of a small call.
func BenchmarkCall(b *testing.B) {
	h := open(b)
	h.employ(b, h.enrol(b, "w1"))
	h.connected(b, "w1")
	settings, err := json.Marshal(map[string]any{"dir": b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	p := h.start(b, "w1", plugin.Launch{SHA256: checksum(b), Settings: settings})
	for b.Loop() {
		if _, err := p.Platform().Probe(context.Background(), sdk.Subject{}); err != nil {
			b.Fatal(err)
		}
	}
}
