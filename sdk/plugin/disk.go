package plugin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/nbd"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// closeLimit bounds how long closing a disk waits for the plugin.
const closeLimit = 10 * time.Second

// bytesOf dials the bytes of a disk that the plugin has opened.
func (r *remote) bytesOf(ctx context.Context, opened *pluginv1.OpenedDisk) (*remoteDisk, error) {
	d := &remoteDisk{remote: r, handle: opened.GetHandle()}
	if d.handle == "" || len(d.handle) > maxID || opened.GetSizeBytes() < 0 {
		return nil, broken("an open disk of %d bytes with a handle of %d", opened.GetSizeBytes(), len(d.handle))
	}
	address, err := fromAddress(opened.GetAddress())
	if err == nil {
		address, err = r.reachable(address)
	}
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, r.limit)
		defer cancel()
		d.Disk, err = nbd.OpenThrough(limited, address, r.wrapped(address, r.dialerOf(d.handle)))
	}
	if err == nil && d.Size() != opened.GetSizeBytes() {
		err = errors.Join(broken("a disk of %d bytes is served with %d", opened.GetSizeBytes(), d.Size()), d.Disk.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the data of a disk: %w", err), d.release())
	}
	return d, nil
}

// reachable is where a disk's bytes are dialled. What the process serves itself
// needs nobody's leave.
func (r *remote) reachable(a sdk.Address) (sdk.Address, error) {
	own := r.dir != "" && a.Network == "unix" && filepath.Dir(a.Addr) == r.dir
	if own || r.reach == nil || r.dialDisk != nil {
		return a, nil
	}
	return r.reach(a)
}

// dialerOf reaches a disk of a plugin on another machine; nil for one here.
func (r *remote) dialerOf(handle string) func(context.Context) (net.Conn, error) {
	if r.dialDisk == nil {
		return nil
	}
	return func(ctx context.Context) (net.Conn, error) { return r.dialDisk(ctx, handle) }
}

// remoteDisk is an open disk whose closing also tells the plugin.
type remoteDisk struct {
	*nbd.Disk
	remote  *remote
	handle  string
	closing sync.Once
	err     error
}

func (d *remoteDisk) close() error {
	d.closing.Do(func() { d.err = errors.Join(d.Disk.Close(), d.release()) })
	return d.err
}

// release tells the plugin. A plugin that is gone has released everything.
func (d *remoteDisk) release() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_, err := call(ctx, d.remote, "CloseDisk", d.remote.client.CloseDisk, &pluginv1.CloseDiskRequest{Handle: d.handle})
	if errors.Is(err, sdk.ErrUnavailable) {
		return nil
	}
	return err
}

// openReader opens a disk for reading; size is what its snapshot said, or -1.
func (r *remote) openReader(ctx context.Context, opened *pluginv1.OpenedDisk, size int64) (sdk.BlockReader, error) {
	if size >= 0 && opened.GetSizeBytes() != size {
		d := &remoteDisk{remote: r, handle: clip(opened.GetHandle(), maxID)}
		return nil, errors.Join(broken("a disk of %d bytes has %d when it is opened", size, opened.GetSizeBytes()), d.release())
	}
	d, err := r.bytesOf(ctx, opened)
	if err != nil {
		return nil, err
	}
	return &remoteReader{disk: d}, nil
}

var (
	_ nbd.Metered = (*remoteReader)(nil)
	_ nbd.Metered = (*remoteWriter)(nil)
)

// remoteReader is an author's BlockReader at the host.
type remoteReader struct{ disk *remoteDisk }

func (r *remoteReader) Size() int64                             { return r.disk.Size() }
func (r *remoteReader) ReadAt(p []byte, off int64) (int, error) { return r.disk.ReadAt(p, off) }
func (r *remoteReader) Close() error                            { return r.disk.close() }

// Stats is what moved between this process and whoever serves the disk.
func (r *remoteReader) Stats() nbd.Stats { return r.disk.Stats() }

func (r *remoteReader) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return r.disk.Extents(ctx, off, n)
}

func (r *remote) openWriter(ctx context.Context, opened *pluginv1.OpenedDisk) (*remoteWriter, error) {
	shape := sdk.Shape(opened.GetShape())
	d, err := r.bytesOf(ctx, opened)
	if err != nil {
		return nil, err
	}
	if shape != sdk.ShapeRandom && shape != sdk.ShapeSequential {
		return nil, errors.Join(broken("a writer of shape %q", shape), d.close())
	}
	return &remoteWriter{disk: d, shape: shape}, nil
}

// remoteWriter is an author's BlockWriter at the host. It holds its user to
// the shape, where the mistake can still be seen in a stack.
type remoteWriter struct {
	disk  *remoteDisk
	shape sdk.Shape
	order order
}

func (w *remoteWriter) Size() int64      { return w.disk.Size() }
func (w *remoteWriter) Shape() sdk.Shape { return w.shape }
func (w *remoteWriter) Flush() error     { return w.disk.Flush() }
func (w *remoteWriter) Close() error     { return w.disk.close() }

// Stats is what moved between this process and whoever serves the disk.
func (w *remoteWriter) Stats() nbd.Stats { return w.disk.Stats() }

func (w *remoteWriter) WriteAt(p []byte, off int64) (int, error) {
	if w.shape != sdk.ShapeSequential {
		return w.disk.WriteAt(p, off)
	}
	if err := w.order.advance(off, int64(len(p))); err != nil {
		return 0, err
	}
	return w.whole(p, off)
}

// whole writes in pieces one after the other: the client would split a long
// write and send the pieces at once.
func (w *remoteWriter) whole(p []byte, off int64) (int, error) {
	const piece = 1 << 20
	done := 0
	for done < len(p) {
		n, err := w.disk.WriteAt(p[done:min(done+piece, len(p))], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (w *remoteWriter) Zero(off, n int64) error {
	if w.shape == sdk.ShapeSequential {
		if err := w.order.advance(off, n); err != nil {
			return err
		}
	}
	return w.disk.Zero(off, n)
}
