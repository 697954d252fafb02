package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime/debug"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	// maxServing bounds the requests that are carried out for one connection
	// at a time. More of them wait in the socket.
	maxServing = 32
	// maxServingBytes bounds the buffers of one connection: two of the largest
	// requests, or many ordinary ones.
	maxServingBytes = 2 * maxPayload
	// readPiece is how much of a read is fetched and sent at a time where the
	// client takes replies in several chunks: small enough for the caches.
	readPiece = 1 << 20
	// zeroStep is how much is written at a time where an export cannot zero.
	zeroStep = int64(len(zeroes))
)

// budget is a bound on bytes. Each take fits into it by itself.
type budget struct {
	mu   sync.Mutex // guards free
	cond *sync.Cond
	free int64
}

func newBudget(n int64) *budget {
	b := &budget{free: n}
	b.cond = sync.NewCond(&b.mu)
	return b
}

func (b *budget) take(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.free < n {
		b.cond.Wait()
	}
	b.free -= n
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	b.free += n
	b.mu.Unlock()
	b.cond.Broadcast() // what one waiter lacks may do for another
}

// buffers are kept by size, in powers of two from minBuffer to maxPayload.
const (
	minBuffer     = 4 << 10
	bufferClasses = 14
)

var (
	buffers [bufferClasses]sync.Pool
	_       = [1]struct{}{}[maxPayload-minBuffer<<(bufferClasses-1)] // the last class holds the largest payload
)

func bufferClass(n int) int {
	return bits.Len(uint(max(n, 1)-1) / minBuffer)
}

// getBuffer gives a buffer of at least n bytes, cut to n.
func getBuffer(n int) *[]byte {
	class := bufferClass(n)
	b, ok := buffers[class].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, minBuffer<<class)
		b = &fresh
	}
	*b = (*b)[:n]
	return b
}

func putBuffer(b *[]byte) {
	buffers[bufferClass(cap(*b))].Put(b)
}

// work is one request at the server.
type work struct {
	requestHeader
	payload *[]byte // of a write
	place   []byte  // of a placed read
	held    int64   // of the budget
	err     error   // why it is refused without being tried
}

// transmit serves requests until the client leaves or the connection breaks,
// and waits for those that are being carried out.
func (n *session) transmit(ctx context.Context) error {
	n.in = bufio.NewReaderSize(n.conn, readAhead)
	n.out = newFrameWriter(n.conn, n.server.timeout())
	err := n.requests(ctx)
	if err != nil && !errors.Is(err, errLeft) && !n.isWinding() {
		// Nobody reads the replies any more; do not wait to send them.
		_ = n.raw.Close()
	}
	n.running.Wait()
	n.writing.Lock()
	defer n.writing.Unlock()
	if n.fault != nil {
		return n.fault
	}
	return err
}

func (n *session) isWinding() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.winding
}

func (n *session) requests(ctx context.Context) error {
	for {
		w, err := n.receive()
		if err != nil {
			return err
		}
		if w.command == cmdDisconnect {
			return errLeft
		}
		n.slots <- struct{}{}
		if n.export.Serial {
			n.handle(ctx, w)
			continue
		}
		n.running.Go(func() { n.handle(ctx, w) })
	}
}

// receive reads the next request with its payload. The client may take as long
// as it likes to begin one, and the time-out to send it.
func (n *session) receive() (*work, error) {
	if err := n.deadline(time.Time{}); err != nil {
		return nil, err
	}
	if _, err := n.in.Peek(1); err != nil {
		return nil, err
	}
	if err := n.deadline(time.Now().Add(n.server.timeout())); err != nil {
		return nil, err
	}
	var h [requestHeaderSize]byte
	if _, err := io.ReadFull(n.in, h[:]); err != nil {
		return nil, unexpected(err)
	}
	header, err := parseRequest(&h)
	if err != nil {
		return nil, err
	}
	w := &work{requestHeader: header}
	w.err = n.check(header)
	if header.command == cmdReadPlaced && n.memory != nil {
		return w, n.receivePlace(w)
	}
	if header.command != cmdWrite {
		return w, nil
	}
	return w, n.receivePayload(w)
}

func (n *session) receivePayload(w *work) error {
	switch {
	case w.length > maxPayload:
		return violated("write of %d bytes", w.length)
	case w.err != nil:
		_, err := io.CopyN(io.Discard, n.in, int64(w.length))
		return unexpected(err)
	}
	w.held = int64(w.length)
	n.budget.take(w.held)
	w.payload = getBuffer(int(w.length))
	for rest := *w.payload; len(rest) > 0; {
		if err := n.deadline(time.Now().Add(n.server.timeout())); err != nil {
			return err
		}
		piece := rest[:min(len(rest), writePiece)]
		if _, err := io.ReadFull(n.in, piece); err != nil {
			return unexpected(err)
		}
		rest = rest[len(piece):]
	}
	return nil
}

// knownFlags are the request flags that the server understands.
func knownFlags(c command) uint16 {
	switch c {
	case cmdRead, cmdReadPlaced:
		return cmdFlagDF | cmdFlagFUA
	case cmdWriteZeroes:
		return cmdFlagFUA | cmdFlagNoHole
	case cmdBlockStatus:
		return cmdFlagReqOne | cmdFlagFUA
	}
	return cmdFlagFUA
}

// check refuses what the export cannot do, before anything is allocated.
func (n *session) check(h requestHeader) error {
	e := &n.export
	changes := h.command == cmdWrite || h.command == cmdWriteZeroes || h.command == cmdTrim
	switch {
	case h.command > cmdBlockStatus && (h.command != cmdReadPlaced || n.memory == nil):
		return refuse(EINVAL, "command %d", uint16(h.command))
	case h.flags&^knownFlags(h.command) != 0:
		return refuse(EINVAL, "flags %#x of %s", h.flags, h.command)
	case h.command == cmdDisconnect:
		return nil
	case changes && e.readOnly():
		return refuse(EPERM, "the export is read-only")
	case h.command == cmdFlush:
		return nil
	}
	size := uint64(e.Size)
	if h.offset > size || uint64(h.length) > size-h.offset {
		if h.command == cmdWrite || h.command == cmdWriteZeroes {
			return refuse(ENOSPC, "beyond the end of the disk")
		}
		return refuse(EINVAL, "beyond the end of the disk")
	}
	if block := uint64(e.minBlock()); h.offset%block != 0 || uint64(h.length)%block != 0 && h.offset+uint64(h.length) != size {
		return refuse(EINVAL, "not aligned to %d bytes", block)
	}
	switch h.command {
	case cmdRead, cmdReadPlaced:
		if e.Reader == nil {
			return refuse(EPERM, "the export is write-only")
		}
		if h.length > maxPayload {
			return refuse(EINVAL, "read of %d bytes", h.length)
		}
	case cmdBlockStatus:
		if len(n.selected) == 0 || !n.structured || h.length == 0 {
			return refuse(EINVAL, "block status without a meta context or of no bytes")
		}
	case cmdTrim:
		if _, ok := e.Writer.(trimmer); !ok {
			return refuse(ENOTSUP, "trim")
		}
	}
	return nil
}

// handle carries out one request and answers it. A panic of the export is an
// error of the request.
func (n *session) handle(ctx context.Context, w *work) {
	defer func() {
		if w.payload != nil {
			putBuffer(w.payload)
		}
		n.budget.give(w.held)
		<-n.slots
	}()
	if err := n.attempt(ctx, w); err != nil {
		n.fail(w, err)
	}
}

// attempt answers the request, or returns why it cannot be answered well.
func (n *session) attempt(ctx context.Context, w *work) (err error) {
	defer func() {
		if p := recover(); p != nil {
			n.server.log().Error("nbd export panicked", "request", w.command.String(), "panic", p, "stack", string(debug.Stack()))
			err = sdk.Errorf(nil, sdk.FaultPlugin, "%s panicked", w.command)
		}
	}()
	if w.err != nil {
		return w.err
	}
	switch w.command {
	case cmdRead:
		return n.read(w)
	case cmdReadPlaced:
		return n.readPlaced(w)
	case cmdBlockStatus:
		return n.status(ctx, w)
	}
	if err := n.change(w); err != nil {
		return err
	}
	n.done(w)
	return nil
}

// change carries out what is answered by nothing but success.
func (n *session) change(w *work) error {
	off, length := int64(w.offset), int64(w.length)
	var err error
	switch w.command {
	case cmdWrite:
		var count int
		if count, err = n.export.Writer.WriteAt(*w.payload, off); err == nil && count < len(*w.payload) {
			err = io.ErrShortWrite
		}
	case cmdWriteZeroes:
		err = n.zero(off, length)
	case cmdTrim:
		err = n.export.Writer.(trimmer).Trim(off, length)
	case cmdFlush:
		return n.flush()
	case cmdCache:
		return nil
	}
	if err != nil || w.flags&cmdFlagFUA == 0 {
		return err
	}
	return n.flush()
}

func (n *session) zero(off, length int64) error {
	if z, ok := n.export.Writer.(zeroer); ok {
		return z.Zero(off, length)
	}
	for length > 0 {
		step := min(length, zeroStep)
		if _, err := n.export.Writer.WriteAt(zeroes[:step], off); err != nil {
			return err
		}
		off, length = off+step, length-step
	}
	return nil
}

// flush makes writes durable. That it can is told to clients by a flag; a
// client that asks all the same gets no promise that cannot be kept.
func (n *session) flush() error {
	if n.export.readOnly() {
		return nil
	}
	f, ok := n.export.Writer.(flusher)
	if !ok {
		return refuse(ENOTSUP, "flush")
	}
	return f.Flush()
}

// read answers in pieces where the client allows it.
func (n *session) read(w *work) error {
	piece := int64(w.length)
	if n.structured && w.flags&cmdFlagDF == 0 {
		piece = min(piece, readPiece)
	}
	n.budget.take(piece)
	defer n.budget.give(piece)
	b := getBuffer(int(piece))
	defer putBuffer(b)
	off, rest := int64(w.offset), int64(w.length)
	if rest == 0 {
		n.done(w)
		return nil
	}
	for rest > 0 {
		p := (*b)[:min(piece, rest)]
		if err := n.fetch(p, off); err != nil {
			return err
		}
		rest -= int64(len(p))
		n.data(w, p, off, rest == 0)
		off += int64(len(p))
	}
	return nil
}

// fetch reads all of p. A disk that ends early is broken.
func (n *session) fetch(p []byte, off int64) error {
	count, err := n.export.Reader.ReadAt(p, off)
	switch {
	case count == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("the disk ends at %d, before its size: %w", off+int64(count), io.ErrUnexpectedEOF)
	}
	return err
}

// status answers BLOCK_STATUS with one chunk for each chosen context.
func (n *session) status(ctx context.Context, w *work) error {
	limit := maxReplyExtents
	if w.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	var chunks [][]byte
	for _, s := range n.selected {
		list := n.export.describe(ctx, s.name, int64(w.offset), int64(w.length))
		extents, err := cover(list, int64(w.offset), int64(w.length), limit)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		b := binary.BigEndian.AppendUint32(nil, s.id)
		for _, e := range extents {
			b = binary.BigEndian.AppendUint32(b, uint32(e.Length))
			b = binary.BigEndian.AppendUint32(b, e.Flags)
		}
		chunks = append(chunks, b)
	}
	for i, b := range chunks {
		n.chunk(w, chunkBlockStatus, i == len(chunks)-1, nil, b)
	}
	return nil
}

// done answers success.
func (n *session) done(w *work) {
	if n.structured && w.command == cmdRead {
		n.chunk(w, chunkNone, true, nil, nil)
		return
	}
	n.simple(w, 0, nil)
}

// fail answers with an error. Chunks that went before do not matter.
func (n *session) fail(w *work, err error) {
	errno := errnoOf(err)
	if !n.structured {
		n.simple(w, errno, nil)
		return
	}
	message := replyMessage(err)
	b := binary.BigEndian.AppendUint32(nil, uint32(errno))
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	n.chunk(w, chunkError, true, nil, append(b, message...))
}

// data sends a piece of a read.
func (n *session) data(w *work, p []byte, off int64, last bool) {
	switch {
	case !n.structured:
		n.simple(w, 0, p)
	case isZero(p) && w.flags&cmdFlagDF == 0:
		b := binary.BigEndian.AppendUint64(nil, uint64(off))
		n.chunk(w, chunkHole, last, binary.BigEndian.AppendUint32(b, uint32(len(p))), nil)
	default:
		n.chunk(w, chunkData, last, binary.BigEndian.AppendUint64(nil, uint64(off)), p)
	}
}

func (n *session) simple(w *work, errno Errno, data []byte) {
	n.send(data, func(h []byte) []byte {
		h = binary.BigEndian.AppendUint32(h, magicSimple)
		h = binary.BigEndian.AppendUint32(h, uint32(errno))
		return binary.BigEndian.AppendUint64(h, w.cookie)
	})
}

// chunk sends a chunk whose content is lead and then body.
func (n *session) chunk(w *work, typ uint16, last bool, lead, body []byte) {
	var flags uint16
	if last {
		flags = chunkDone
	}
	n.send(body, func(h []byte) []byte {
		h = binary.BigEndian.AppendUint32(h, magicStructured)
		h = binary.BigEndian.AppendUint16(h, flags)
		h = binary.BigEndian.AppendUint16(h, typ)
		h = binary.BigEndian.AppendUint64(h, w.cookie)
		h = binary.BigEndian.AppendUint32(h, uint32(len(lead)+len(body)))
		return append(h, lead...)
	})
}

// send writes one message. The first one that cannot be sent ends the session:
// closing the connection wakes the reader of requests.
func (n *session) send(body []byte, head func([]byte) []byte) {
	n.writing.Lock()
	defer n.writing.Unlock()
	if n.fault != nil {
		return
	}
	n.head = head(n.head[:0])
	if err := n.out.write(n.head, body); err != nil {
		n.fault = fmt.Errorf("send reply: %w", err)
		_ = n.raw.Close()
	}
}

// isZero reports whether all of p is zero. It gives up at the first byte that
// is not, so data costs nothing.
func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroes))
		if string(p[:n]) != string(zeroes[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
