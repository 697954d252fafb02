package plugin

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/nbd"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

const (
	// maxOpenDisks is how many disks one plugin process has open.
	maxOpenDisks = 1024
	// dataConnections is how many connections the host makes to a disk that
	// this process serves: each is a goroutine that copies, so more than two
	// bring nothing on a socket of the same machine.
	dataConnections = 2
)

// dataServer keeps the disks that the host has open, and serves those that the
// back-end does not serve itself. An export's name is an unguessable token: who
// has it was told by the control channel.
type dataServer struct {
	dir string
	log *slog.Logger

	mutex     sync.Mutex // guards the fields below
	disks     map[string]*openDisk
	nbd       *nbd.Server
	listening error // why there is no server
	serving   sync.WaitGroup
}

// openDisk is one disk that the host has open.
type openDisk struct {
	owner  string // the snapshot, draft or point
	disk   string // of a draft
	export nbd.Export
	close  func() error
	gate   gate
}

func newDataServer(dir string, log *slog.Logger) *dataServer {
	return &dataServer{dir: dir, log: log, disks: make(map[string]*openDisk)}
}

// offerReader makes a reader reachable for the host.
func (s *dataServer) offerReader(owner string, r sdk.BlockReader) (*pluginv1.OpenedDisk, error) {
	d := &openDisk{owner: owner, close: r.Close}
	guarded := &gatedReader{reader: r, gate: &d.gate, log: s.log}
	d.export = nbd.Export{Size: r.Size(), Reader: guarded, MultiConn: true}
	return s.offer(d, r, &pluginv1.OpenedDisk{SizeBytes: r.Size()}, dataConnections)
}

// offerWriter makes a writer reachable for the host, after it has ended the
// writer that had the disk before.
func (s *dataServer) offerWriter(owner, disk string, w sdk.BlockWriter) (*pluginv1.OpenedDisk, error) {
	return s.offerReadableWriter(owner, disk, w, nil)
}

// offerReadableWriter is offerWriter for what can be read, too, by reader
// unless that is nil.
func (s *dataServer) offerReadableWriter(owner, disk string, w sdk.BlockWriter, reader io.ReaderAt) (*pluginv1.OpenedDisk, error) {
	s.closeWhere(func(d *openDisk) bool { return d.owner == owner && d.disk == disk })
	d := &openDisk{owner: owner, disk: disk, close: w.Close}
	shape, connections := w.Shape(), dataConnections
	guarded := &gatedWriter{writer: w, gate: &d.gate, log: s.log, sequential: shape == sdk.ShapeSequential}
	d.export = nbd.Export{Size: w.Size(), Writer: guarded, MultiConn: true}
	switch {
	case shape == sdk.ShapeSequential:
		d.export.Serial, connections = true, 1
	case reader != nil:
		d.export.Reader = &gatedBytes{reader: reader, gate: &d.gate, log: s.log}
	}
	return s.offer(d, w, &pluginv1.OpenedDisk{SizeBytes: w.Size(), Shape: string(shape)}, connections)
}

func (s *dataServer) offer(d *openDisk, value any, opened *pluginv1.OpenedDisk, connections int) (*pluginv1.OpenedDisk, error) {
	opened.Handle = newToken()
	err := s.add(opened.Handle, d)
	if err != nil {
		return nil, errors.Join(err, s.closeAuthors(d))
	}
	if direct, ok := value.(sdk.Addressed); ok {
		opened.Address = toAddress(direct.Address())
		return opened, nil
	}
	if err := s.listen(); err != nil {
		return nil, errors.Join(err, s.closeHandle(opened.Handle))
	}
	opened.Address = toAddress(sdk.Address{
		Network: "unix", Addr: s.socket(), Export: opened.Handle, Connections: connections,
	})
	return opened, nil
}

func (s *dataServer) add(handle string, d *openDisk) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.disks == nil {
		return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "the plugin is being closed")
	}
	if len(s.disks) >= maxOpenDisks {
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "%d disks are open", len(s.disks))
	}
	s.disks[handle] = d
	return nil
}

func (s *dataServer) socket() string { return filepath.Join(s.dir, "data.sock") }

// listen starts the NBD server when the first disk needs it.
func (s *dataServer) listen() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.nbd != nil || s.listening != nil {
		return s.listening
	}
	listener, err := net.Listen("unix", s.socket())
	if err == nil {
		err = os.Chmod(s.socket(), 0o600)
	}
	if err != nil {
		s.listening = sdk.Errorf(nil, sdk.FaultHost, "listen for disk data: %v", err)
		return s.listening
	}
	server := &nbd.Server{Exports: s.export, Log: s.log, MaxConnections: dataConnections * maxOpenDisks}
	s.nbd = server
	s.serving.Go(func() {
		if err := server.Serve(context.Background(), listener); !errors.Is(err, nbd.ErrServerClosed) {
			s.log.Error("serve disk data", "err", err)
		}
	})
	return nil
}

// export finds the disk whose token a client names.
func (s *dataServer) export(name string) (nbd.Export, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	d, ok := s.disks[name]
	if !ok {
		return nbd.Export{}, sdk.ErrNotFound
	}
	return d.export, nil
}

func (s *dataServer) closeHandle(handle string) error {
	s.mutex.Lock()
	d, ok := s.disks[handle]
	delete(s.disks, handle)
	server := s.nbd
	s.mutex.Unlock()
	if !ok {
		return nil
	}
	d.gate.shut()
	if server != nil {
		// Nobody is inside the gate any more, so this does not wait for the
		// author.
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		if err := server.Kick(ctx, handle); err != nil {
			s.log.Warn("disconnect the clients of a closed disk", "err", err)
		}
	}
	return s.closeAuthors(d)
}

// closeAuthors closes the author's reader or writer.
func (s *dataServer) closeAuthors(d *openDisk) (err error) {
	defer func() { err = recovered(s.log, "Close", recover(), err) }()
	return d.close()
}

// closeOwner ends the disks of a snapshot that has ended, of a draft that is
// one no more, or of a point that was removed.
func (s *dataServer) closeOwner(owner string) {
	s.closeWhere(func(d *openDisk) bool { return d.owner == owner })
}

// closeOthers ends the disks of all owners of a replica but one.
func (s *dataServer) closeOthers(prefix, but string) {
	s.closeWhere(func(d *openDisk) bool { return strings.HasPrefix(d.owner, prefix) && d.owner != but })
}

func (s *dataServer) closeWhere(match func(*openDisk) bool) {
	s.mutex.Lock()
	var handles []string
	for handle, d := range s.disks {
		if match(d) {
			handles = append(handles, handle)
		}
	}
	s.mutex.Unlock()
	for _, handle := range handles {
		if err := s.closeHandle(handle); err != nil {
			s.log.Warn("close a disk", "err", err)
		}
	}
}

// close ends every disk and the server.
func (s *dataServer) close() {
	s.closeWhere(func(*openDisk) bool { return true })
	s.mutex.Lock()
	server := s.nbd
	s.disks = nil
	s.mutex.Unlock()
	if server != nil {
		_ = server.Close()
	}
	s.serving.Wait()
}

// gate lets calls through until it is shut; shutting waits for those inside,
// so that no write lands after a later writer was told that it is alone.
type gate struct {
	mutex  sync.RWMutex // guards closed; held for reading during calls
	closed bool
}

func (g *gate) enter() (leave func(), err error) {
	g.mutex.RLock()
	if g.closed {
		g.mutex.RUnlock()
		return nil, sdk.Errorf(sdk.ErrFenced, sdk.FaultHost, "the disk was closed or opened by somebody else")
	}
	return g.mutex.RUnlock, nil
}

func (g *gate) shut() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.closed = true
}

// gatedBytes is what an author's writer reads, behind its gate.
type gatedBytes struct {
	reader io.ReaderAt
	gate   *gate
	log    *slog.Logger
}

func (r *gatedBytes) ReadAt(p []byte, off int64) (n int, err error) {
	leave, err := r.gate.enter()
	if err != nil {
		return 0, err
	}
	defer leave()
	defer func() { err = recovered(r.log, "ReadAt", recover(), err) }()
	return r.reader.ReadAt(p, off)
}

// gatedReader is an author's reader behind a gate.
type gatedReader struct {
	reader sdk.BlockReader
	gate   *gate
	log    *slog.Logger
}

func (r *gatedReader) ReadAt(p []byte, off int64) (int, error) {
	return (&gatedBytes{r.reader, r.gate, r.log}).ReadAt(p, off)
}

func (r *gatedReader) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		leave, err := r.gate.enter()
		if err != nil {
			yield(sdk.Extent{}, err)
			return
		}
		defer leave()
		defer func() {
			if err := recovered(r.log, "Extents", recover(), nil); err != nil {
				yield(sdk.Extent{}, err)
			}
		}()
		r.reader.Extents(ctx, off, n)(yield)
	}
}

// gatedWriter is an author's writer behind a gate, held to its shape.
type gatedWriter struct {
	writer     sdk.BlockWriter
	gate       *gate
	log        *slog.Logger
	sequential bool
	order      order
}

func (w *gatedWriter) WriteAt(p []byte, off int64) (n int, err error) {
	err = w.do("WriteAt", func() (err error) {
		if err := w.ordered(off, int64(len(p))); err != nil {
			return err
		}
		n, err = w.writer.WriteAt(p, off)
		return err
	})
	return n, err
}

func (w *gatedWriter) Zero(off, n int64) error {
	return w.do("Zero", func() error {
		if err := w.ordered(off, n); err != nil {
			return err
		}
		return w.writer.Zero(off, n)
	})
}

func (w *gatedWriter) Flush() error { return w.do("Flush", w.writer.Flush) }

func (w *gatedWriter) do(call string, work func() error) (err error) {
	leave, err := w.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	defer func() { err = recovered(w.log, call, recover(), err) }()
	return work()
}

func (w *gatedWriter) ordered(off, n int64) error {
	if !w.sequential {
		return nil
	}
	return w.order.advance(off, n)
}

// order holds writes to ascending offsets, each byte once.
type order struct {
	mutex sync.Mutex // guards next
	next  int64
}

func (o *order) advance(off, n int64) error {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if off < o.next {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost,
			"write at %d after everything before %d was written: this disk is written in ascending order", off, o.next)
	}
	o.next = off + n
	return nil
}
