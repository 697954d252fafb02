package nbd

import (
	"sync"
	"sync/atomic"
	"testing"
)

// endless is a disk of the same byte that costs nothing to read.
type endless struct{ size int64 }

func (endless) ReadAt(p []byte, _ int64) (int, error) {
	if p[0] != 1 { // buffers come back as they were left
		for i := range p {
			p[i] = 1
		}
	}
	return len(p), nil
}

// BenchmarkRead1GiB reads a disk of 1 GiB over a unix socket in 1 MiB requests.
func BenchmarkRead1GiB(b *testing.B) {
	for name, k := range map[string]struct{ connections, goroutines int }{
		"one at a time":         {1, 1},
		"8 in flight":           {1, 8},
		"8 over 2 connections":  {2, 8},
		"16 over 4 connections": {4, 16},
	} {
		b.Run(name, func(b *testing.B) {
			const size, piece = int64(1 << 30), int64(1 << 20)
			c := dialServer(b, single("disk", Export{Size: size, Reader: endless{size}}),
				func(o *Options) { o.Connections = k.connections })
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				var next atomic.Int64
				var group sync.WaitGroup
				for range k.goroutines {
					group.Go(func() {
						p := make([]byte, piece)
						for {
							off := next.Add(piece) - piece
							if off >= size {
								return
							}
							if _, err := c.ReadAt(p, off); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				group.Wait()
			}
		})
	}
}
