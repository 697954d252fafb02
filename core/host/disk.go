package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// openOn makes a call that opens a disk, which wrap makes a disk of the life.
func openOn[T any](ctx context.Context, l *life, method string, open func(sdk.Platform) (T, error), wrap func(T) T) (T, error) {
	end, began := l.begin(ctx, method), time.Now()
	disk, err := open(l.process.Platform())
	if err := end(time.Since(began), err); err != nil {
		var none T
		return none, err
	}
	return wrap(disk), nil
}

// disk is what readers and writers have in common: the process that they end
// with, and being counted while they are open.
type disk struct {
	life    *life
	closing sync.Once
}

func (d *disk) opened() {
	d.life.disks.Add(1)
	d.meter().count(func(m *PluginMetrics) { m.OpenDisks++ })
}

func (d *disk) closed() {
	d.closing.Do(func() {
		d.life.disks.Add(-1)
		d.meter().count(func(m *PluginMetrics) { m.OpenDisks-- })
	})
}

func (d *disk) read(n int64) {
	d.life.moved.Add(n)
	d.meter().count(func(m *PluginMetrics) { m.ReadBytes += n })
}

func (d *disk) meter() *meter { return d.life.slot.host.meter(d.life.slot.endpoint.Plugin) }

// named says whose disk it is that cannot be read or written.
func (d *disk) named(verb string, err error) error {
	if err == nil || errors.Is(err, io.EOF) { // readers compare io.EOF itself
		return err
	}
	return fmt.Errorf("%s a disk of plugin %s at endpoint %s: %w", verb, d.life.slot.endpoint.Plugin, d.life.slot.endpoint.Name, err)
}

// reader is an open disk whose bytes are counted.
type reader struct {
	disk
	inner sdk.BlockReader
}

func newReader(l *life, inner sdk.BlockReader) *reader {
	r := &reader{disk: disk{life: l}, inner: inner}
	r.opened()
	return r
}

// Unwrap is the reader that is counted, for those who look for more than the
// contract asks for.
func (r *reader) Unwrap() sdk.BlockReader { return r.inner }

// Size is the disk's.
func (r *reader) Size() int64 { return r.inner.Size() }

// ReadAt reads and counts.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.inner.ReadAt(p, off)
	r.read(int64(n))
	return n, r.named("read", err)
}

// Extents are the disk's.
func (r *reader) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		for e, err := range r.inner.Extents(ctx, off, n) {
			if !yield(e, r.named("list the extents of", err)) {
				return
			}
		}
	}
}

// Close closes the disk.
func (r *reader) Close() error {
	r.closed()
	return r.named("close", r.inner.Close())
}

// writer is an open disk whose bytes are counted.
type writer struct {
	disk
	inner sdk.BlockWriter
}

func newWriter(l *life, inner sdk.BlockWriter) *writer {
	w := &writer{disk: disk{life: l}, inner: inner}
	w.opened()
	return w
}

// Unwrap is the writer that is counted.
func (w *writer) Unwrap() sdk.BlockWriter { return w.inner }

// Size is the disk's.
func (w *writer) Size() int64 { return w.inner.Size() }

// Shape is the disk's.
func (w *writer) Shape() sdk.Shape { return w.inner.Shape() }

// WriteAt writes and counts.
func (w *writer) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.inner.WriteAt(p, off)
	w.wrote(int64(n))
	return n, w.named("write to", err)
}

// Zero zeroes, which moves no bytes but shows that the plugin lives.
func (w *writer) Zero(off, n int64) error {
	err := w.inner.Zero(off, n)
	if err == nil {
		w.life.moved.Add(n)
	}
	return w.named("zero", err)
}

// Flush makes what was written durable.
func (w *writer) Flush() error { return w.named("flush", w.inner.Flush()) }

// Close closes the disk.
func (w *writer) Close() error {
	w.closed()
	return w.named("close", w.inner.Close())
}

func (w *writer) wrote(n int64) {
	w.life.moved.Add(n)
	w.meter().count(func(m *PluginMetrics) { m.WrittenBytes += n })
}
