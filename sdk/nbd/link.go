package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	// maxInFlight bounds the requests on one connection. QEMU works on 16 at a
	// time and leaves the others in the socket.
	maxInFlight = 64
	// slowFactor is how many time-outs a request gets that has a good reason
	// to take long: one that moves no data but makes the server work (flush,
	// zeroes), and one that waits behind others while their data arrives.
	slowFactor = 4
)

// errClosed ends the requests of a client that was closed. It wraps
// net.ErrClosed.
var errClosed = fmt.Errorf("nbd client: %w", net.ErrClosed)

// request is one request and what became of it. While it is pending the link's
// receiver owns it, buffer included; the value in done hands it back.
type request struct {
	command command
	flags   uint16
	offset  uint64
	length  uint32
	buf     []byte   // of a read: where the data goes
	place   int      // of a placed read: the offset in the memory
	context uint32   // of a block status: the wanted context
	extents []Status // of a block status: what came
	covered coverage // of a read: which bytes came
	refusal error    // the first error that the server reported
	started time.Time
	done    chan error // capacity 1
}

func newRequest(c command, off int64, n uint32) *request {
	return &request{command: c, offset: uint64(off), length: n, done: make(chan error, 1)}
}

// patience is how long the server may be silent while it owes this answer.
func (r *request) patience(timeout time.Duration) time.Duration {
	switch r.command {
	case cmdRead, cmdReadPlaced, cmdWrite, cmdBlockStatus:
		return timeout
	}
	return slowFactor * timeout
}

// fate is why a client ended. Its links share it and look at it before every
// request, so that nothing succeeds on one after it failed on another.
type fate struct {
	mu  sync.Mutex // guards err
	err error
}

// seal sets the reason unless there is one, and returns the one that counts.
func (f *fate) seal(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	return f.err
}

// link is one connection in the transmission phase. Two goroutines belong to
// it: the receiver, which alone ends requests, and the watch, which breaks the
// connection when the server is silent for too long.
type link struct {
	conn    net.Conn
	details *details
	tally   *tally
	timeout time.Duration
	fate    *fate
	onBreak func(error) // called once, with what the link broke of
	pulse   *pulse
	in      *bufio.Reader
	slots   chan struct{} // one for each request in flight
	dead    chan struct{} // closed when the link is broken
	group   sync.WaitGroup
	memory  *sharedMemory // that the server reads into; nil: there is none
	places  chan int      // those that are free

	writing sync.Mutex // guards out, header, placing
	out     *frameWriter
	header  [requestHeaderSize]byte
	placing [placeHeaderSize]byte

	mu      sync.Mutex // guards the fields below
	cookie  uint64
	pending map[uint64]*request
	err     error // why the link is broken
}

func newLink(conn net.Conn, d *details, t *tally, timeout time.Duration, shared *fate, onBreak func(error)) *link {
	l := &link{
		conn: conn, details: d, tally: t, timeout: timeout, fate: shared, onBreak: onBreak,
		pulse:   newPulse(conn),
		slots:   make(chan struct{}, maxInFlight),
		dead:    make(chan struct{}),
		out:     newFrameWriter(conn, timeout),
		pending: make(map[uint64]*request),
	}
	l.in = bufio.NewReaderSize(l.pulse, readAhead)
	return l
}

// mapped lets the link use memory, before it is started.
func (l *link) mapped(m *sharedMemory) {
	if m == nil {
		return
	}
	l.memory, l.places = m, make(chan int, places)
	for i := range places {
		l.places <- i * placeSize
	}
}

func (l *link) start() {
	l.group.Go(l.receive)
	l.group.Go(l.watch)
}

// submit sends a request. Its payload is not used after submit returns. The
// caller of a nil error has to wait.
func (l *link) submit(r *request, payload []byte) error {
	if err := l.fate.seal(nil); err != nil {
		return err
	}
	select {
	case l.slots <- struct{}{}:
	case <-l.dead:
		return l.broken()
	}
	if err := l.choose(r); err != nil {
		return err
	}
	r.started = time.Now()
	cookie, err := l.enrol(r)
	if err != nil {
		return err
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	requestHeader{r.flags, r.command, cookie, r.offset, r.length}.put(&l.header)
	if r.command == cmdReadPlaced {
		payload = binary.BigEndian.AppendUint32(l.placing[:0], uint32(r.place))
	}
	if err := l.out.write(l.header[:], payload); err != nil {
		l.fail(fmt.Errorf("send %s: %w", r.command, err))
		return nil
	}
	if r.command != cmdReadPlaced {
		l.tally.written.Add(int64(len(payload)))
	}
	return nil
}

func (l *link) enrol(r *request) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	l.cookie++
	l.pending[l.cookie] = r
	return l.cookie, nil
}

func (l *link) broken() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// fail breaks the link. Only the first reason counts. The receiver notices
// that the connection is closed and ends what is pending.
func (l *link) fail(err error) {
	err = l.fate.seal(fmt.Errorf("nbd connection broken: %w: %w", sdk.ErrUnavailable, err))
	if l.end(err) {
		l.onBreak(err)
	}
}

// end is fail without telling the others, and reports whether it was the first.
func (l *link) end(err error) bool {
	if !l.condemn(err) {
		return false
	}
	l.shut()
	return true
}

// condemn lets no request in any more, and reports whether it was the first.
func (l *link) condemn(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return false
	}
	l.err = err
	close(l.dead)
	return true
}

// shut closes the connection under TLS too without a word to the peer, which
// could block.
func (l *link) shut() {
	if t, ok := l.conn.(interface{ NetConn() net.Conn }); ok {
		_ = t.NetConn().Close()
		return
	}
	_ = l.conn.Close()
}

// farewell is how long a closing client waits to say so.
const farewell = time.Second

// close says goodbye if nobody else is speaking, and waits for the goroutines.
func (l *link) close() {
	if l.condemn(errClosed) {
		if l.writing.TryLock() {
			l.out.timeout = min(l.timeout, farewell)
			requestHeader{command: cmdDisconnect}.put(&l.header)
			_ = l.out.write(l.header[:], nil)
			l.writing.Unlock()
		}
		l.shut()
	}
	l.group.Wait()
	l.memory.close()
}

// watch breaks the link when the server owes an answer and is silent.
func (l *link) watch() {
	tick := time.NewTicker(max(l.timeout/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-l.dead:
			return
		case now := <-tick.C:
			if c, ok := l.overdue(now); ok {
				l.fail(fmt.Errorf("%s: %w", c, errTimeout))
			}
		}
	}
}

// errTimeout is why a link broke whose server did not answer.
var errTimeout = fmt.Errorf("the server does not answer: %w", context.DeadlineExceeded)

func (l *link) overdue(now time.Time) (command, bool) {
	beat := l.pulse.beat()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.pending {
		patience := r.patience(l.timeout)
		silent := min(now.Sub(beat), now.Sub(r.started))
		if silent > patience || now.Sub(r.started) > slowFactor*patience {
			return r.command, true
		}
	}
	return 0, false
}

// receive is the receiver: it hands replies to their requests until the
// connection ends, and then ends every request that is left.
func (l *link) receive() {
	for {
		if err := l.reply(); err != nil {
			l.fail(unexpected(err))
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for cookie, r := range l.pending {
		delete(l.pending, cookie)
		r.done <- l.err
	}
}

// finish ends one request that the server answered.
func (l *link) finish(cookie uint64, r *request, err error) {
	l.mu.Lock()
	delete(l.pending, cookie)
	l.mu.Unlock()
	<-l.slots
	l.vacate(r)
	r.done <- err
}

func (l *link) lookup(cookie uint64) (*request, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.pending[cookie]
	if !ok {
		return nil, violated("reply to unknown request %#x", cookie)
	}
	return r, nil
}

// reply reads one simple reply or one chunk of a structured one.
func (l *link) reply() error {
	magic, err := l.in.Peek(4)
	if err != nil {
		return err
	}
	switch m := binary.BigEndian.Uint32(magic); {
	case m == magicSimple:
		return l.simple()
	case m == magicStructured && l.details.structured:
		return l.chunk()
	default:
		return violated("reply magic %#x", m)
	}
}

// take reads the next n bytes, which stay valid until the next read.
func (l *link) take(n int) ([]byte, error) {
	b, err := l.in.Peek(n)
	if err != nil {
		return nil, unexpected(err)
	}
	_, _ = l.in.Discard(n)
	return b, nil
}

func (l *link) simple() error {
	h, err := l.take(simpleHeaderSize)
	if err != nil {
		return err
	}
	errno := Errno(binary.BigEndian.Uint32(h[4:]))
	cookie := binary.BigEndian.Uint64(h[8:])
	r, err := l.lookup(cookie)
	switch {
	case err != nil:
		return err
	case errno != 0:
		l.finish(cookie, r, newReplyError(r.command, errno, ""))
		return nil
	case r.command == cmdBlockStatus || r.command == cmdReadPlaced:
		return violated("simple reply to %s", r.command)
	case r.command != cmdRead:
		l.finish(cookie, r, nil)
		return nil
	case l.details.structured:
		return violated("simple reply with data although structured replies were agreed")
	}
	if _, err := io.ReadFull(l.in, r.buf); err != nil {
		return unexpected(err)
	}
	l.tally.read.Add(int64(len(r.buf)))
	l.finish(cookie, r, nil)
	return nil
}

func (l *link) chunk() error {
	h, err := l.take(chunkHeaderSize)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint16(h[4:])
	typ := binary.BigEndian.Uint16(h[6:])
	cookie := binary.BigEndian.Uint64(h[8:])
	length := binary.BigEndian.Uint32(h[16:])
	r, err := l.lookup(cookie)
	if err != nil {
		return err
	}
	if err := l.content(r, typ, flags, length); err != nil {
		return fmt.Errorf("reply to %s: %w", r.command, err)
	}
	if flags&chunkDone == 0 {
		return nil
	}
	if err := r.complete(); err != nil {
		return err
	}
	l.finish(cookie, r, r.refusal)
	return nil
}

// complete checks that a reply answered the request.
func (r *request) complete() error {
	switch {
	case r.refusal != nil:
	case (r.command == cmdRead || r.command == cmdReadPlaced) && r.covered.total != uint64(r.length):
		return violated("reply to read covers %d of %d bytes", r.covered.total, r.length)
	case r.command == cmdBlockStatus && len(r.extents) == 0:
		return violated("reply to block status without the context")
	}
	return nil
}

func (l *link) content(r *request, typ, flags uint16, length uint32) error {
	switch {
	case typ == chunkNone:
		if length != 0 || flags&chunkDone == 0 {
			return violated("malformed empty chunk")
		}
		return nil
	case typ == chunkData && r.command == cmdRead:
		return l.data(r, length)
	case typ == chunkHole && (r.command == cmdRead || r.command == cmdReadPlaced):
		return l.hole(r, length)
	case typ == chunkPlaced && r.command == cmdReadPlaced:
		return l.placed(r, length)
	case typ == chunkBlockStatus && r.command == cmdBlockStatus:
		return l.status(r, length)
	case typ&chunkErrorBit != 0:
		return l.refused(r, typ, length)
	}
	return violated("chunk type %d", typ)
}

func (l *link) data(r *request, length uint32) error {
	if length <= 8 || length-8 > r.length {
		return violated("data chunk of %d bytes", length)
	}
	h, err := l.take(8)
	if err != nil {
		return err
	}
	part, err := r.part(binary.BigEndian.Uint64(h), length-8)
	if err != nil {
		return err
	}
	n, err := io.ReadFull(l.in, part)
	l.tally.read.Add(int64(n))
	return unexpected(err)
}

func (l *link) hole(r *request, length uint32) error {
	if length != 12 {
		return violated("hole chunk of %d bytes", length)
	}
	h, err := l.take(12)
	if err != nil {
		return err
	}
	part, err := r.part(binary.BigEndian.Uint64(h), binary.BigEndian.Uint32(h[8:]))
	if err != nil {
		return err
	}
	clear(part)
	return nil
}

// part is where the bytes [off, off+n) of the disk belong in the buffer.
func (r *request) part(off uint64, n uint32) ([]byte, error) {
	start := off - r.offset
	if n == 0 || off < r.offset || start > uint64(r.length) || uint64(n) > uint64(r.length)-start {
		return nil, violated("chunk [%d, +%d) outside of the request", off, n)
	}
	if err := r.covered.add(start, start+uint64(n)); err != nil {
		return nil, err
	}
	return r.buf[start : start+uint64(n)], nil
}

// refused takes in an error chunk. The request ends with the first one.
func (l *link) refused(r *request, typ uint16, length uint32) error {
	if length < 6 || length > 6+maxString+8 {
		return violated("error chunk of %d bytes", length)
	}
	b, err := l.take(int(length))
	if err != nil {
		return err
	}
	errno := Errno(binary.BigEndian.Uint32(b))
	words := int(binary.BigEndian.Uint16(b[4:]))
	if errno == 0 || 6+words > len(b) || typ == chunkErrorOffset && 6+words+8 != len(b) {
		return violated("malformed error chunk")
	}
	if r.refusal == nil {
		r.refusal = newReplyError(r.command, errno, string(b[6:6+words]))
	}
	return nil
}

// coverage remembers which bytes of a read have arrived: none may come twice,
// and none may be missing in the end.
type coverage struct {
	spans []span // ascending, neither overlapping nor touching
	total uint64
}

type span struct{ first, after uint64 }

// maxSpans bounds the pieces of a read that lie apart. Servers send in
// ascending order, which is one piece.
const maxSpans = 256

func (c *coverage) add(first, after uint64) error {
	at := len(c.spans)
	for at > 0 && c.spans[at-1].first >= first {
		at--
	}
	if at > 0 && c.spans[at-1].after > first || at < len(c.spans) && c.spans[at].first < after {
		return violated("bytes [%d, %d) of a reply sent twice", first, after)
	}
	c.total += after - first
	left := at > 0 && c.spans[at-1].after == first
	right := at < len(c.spans) && c.spans[at].first == after
	switch {
	case left && right:
		c.spans[at-1].after = c.spans[at].after
		c.spans = append(c.spans[:at], c.spans[at+1:]...)
	case left:
		c.spans[at-1].after = after
	case right:
		c.spans[at].first = first
	case len(c.spans) == maxSpans:
		return violated("reply in more than %d pieces", maxSpans)
	default:
		c.spans = append(c.spans, span{})
		copy(c.spans[at+1:], c.spans[at:])
		c.spans[at] = span{first, after}
	}
	return nil
}
