package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	// pieceSize is the largest read or write that the client sends. Larger
	// ones are split and pipelined, so that one does not hold up the others of
	// a connection for long.
	pieceSize = 8 << 20
	// zeroPiece is how much one WRITE_ZEROES covers: a server that has to
	// write them out still answers in time.
	zeroPiece = 64 << 20
	// window is how many pieces of one call are in flight.
	window = 4
	// moreTimeout bounds how long Dial waits for connections after the first,
	// which it can do without.
	moreTimeout = 5 * time.Second
)

// zeroes is what is written where a server does not know WRITE_ZEROES.
var zeroes [1 << 20]byte

// Client is an open export. Its methods may be called from several goroutines.
type Client struct {
	details *details
	tally   *tally
	links   []*link
	next    atomic.Uint32

	partial sync.Mutex // held while part of a block is read, changed, written
	blocks  sync.Pool  // *[]byte of minBlock bytes

	fate    fate
	closing sync.Once
}

// Dial opens an export. The context bounds the opening only.
func Dial(ctx context.Context, o Options) (*Client, error) {
	o.tally = new(tally)
	first, d, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	c := &Client{details: d, tally: o.tally}
	c.blocks.New = func() any { b := make([]byte, d.minBlock); return &b }
	c.adopt(first, o)
	if d.has(flagReadOnly) || d.has(flagMultiConn) {
		if err := c.more(ctx, o); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	for _, l := range c.links {
		l.start()
	}
	return c, nil
}

func open(ctx context.Context, o Options) (*haggle, *details, error) {
	h, err := connect(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	d, err := h.enter()
	if err != nil {
		return nil, nil, h.abandon(err)
	}
	if err := h.settle(); err != nil {
		return nil, nil, err
	}
	return h, d, nil
}

func (c *Client) adopt(h *haggle, o Options) {
	l := newLink(h.conn, c.details, c.tally, o.timeout(), &c.fate, c.broke)
	l.mapped(h.memory)
	c.links = append(c.links, l)
}

// more opens the other connections at once. The server may refuse them, but
// not show a different disk there.
func (c *Client) more(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, moreTimeout)
	defer cancel()
	type opened struct {
		haggle  *haggle
		details *details
	}
	count := o.connections() - 1
	results := make(chan opened, count)
	for range count {
		go func() {
			h, d, _ := open(ctx, o)
			results <- opened{h, d}
		}()
	}
	var err error
	for range count {
		switch r := <-results; {
		case r.haggle == nil:
		case err != nil || !c.details.same(r.details):
			r.haggle.drop()
			err = fmt.Errorf("open another connection: %w", violated("it shows a different export"))
		default:
			c.adopt(r.haggle, o)
		}
	}
	return err
}

// same reports whether two connections may take each other's requests.
func (d *details) same(other *details) bool {
	if d.size != other.size || d.flags != other.flags || d.structured != other.structured ||
		d.minBlock != other.minBlock || d.maxBlock != other.maxBlock || len(d.contexts) != len(other.contexts) {
		return false
	}
	for name, id := range d.contexts {
		if found, ok := other.contexts[name]; !ok || found != id {
			return false
		}
	}
	return true
}

// broke ends every link when one is broken: what the server acknowledged on it
// may be lost, so a later Flush must not succeed on another.
func (c *Client) broke(err error) {
	for _, l := range c.links {
		l.end(err)
	}
}

// Close ends the connections and waits for their goroutines. Requests in
// flight fail with an error that wraps net.ErrClosed. It does not flush.
func (c *Client) Close() error {
	c.closing.Do(func() {
		_ = c.fate.seal(errClosed) // if it broke before, that is the reason to keep
		for _, l := range c.links {
			l.close()
		}
	})
	return nil
}

// Size is the size of the disk in bytes.
func (c *Client) Size() int64 { return c.details.size }

// ReadOnly reports whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.details.has(flagReadOnly) }

// Description is the server's word about the export, often empty.
func (c *Client) Description() string { return c.details.description }

// Connections is how many connections are in use.
func (c *Client) Connections() int { return len(c.links) }

// BlockSizes are the smallest, the preferred and the largest request of the
// server. Callers need not obey; the client does.
func (c *Client) BlockSizes() (smallest, preferred, largest int64) {
	return int64(c.details.minBlock), int64(c.details.preferred), int64(c.details.maxBlock)
}

func (c *Client) pick() *link {
	return c.links[int(c.next.Add(1)%uint32(len(c.links)))]
}

// check refuses ranges outside of the disk.
func (c *Client) check(verb string, off, n int64) error {
	if off < 0 || n < 0 || off > c.Size() || n > c.Size()-off {
		return fmt.Errorf("nbd %s [%d, +%d) of a disk of %d bytes: %w", verb, off, n, c.Size(), sdk.ErrInvalid)
	}
	return nil
}

// writable refuses writes of a read-only export before the server does.
func (c *Client) writable(verb string, off, n int64) error {
	if c.ReadOnly() {
		return fmt.Errorf("nbd %s: the export is read-only: %w", verb, sdk.ErrDenied)
	}
	return c.check(verb, off, n)
}

// aligned widens a range to whole blocks, but not beyond the end of the disk.
func (c *Client) aligned(off, n int64) (first, after int64) {
	block := int64(c.details.minBlock)
	first = off &^ (block - 1)
	after = off + n
	if rest := after & (block - 1); rest != 0 {
		after += min(block-rest, c.Size()-after)
	}
	return first, after
}

// inner narrows a range to whole blocks; the block at the end of the disk
// counts as whole. It may be empty.
func (c *Client) inner(off, n int64) (first, after int64) {
	block := int64(c.details.minBlock)
	first, after = off, off+n
	if rest := first & (block - 1); rest != 0 {
		first = min(first+block-rest, after)
	}
	if after != c.Size() {
		after = max(after&^(block-1), first)
	}
	return first, after
}

// submitted is a piece in flight.
type submitted struct {
	request *request
	size    int64
}

// pieces submits [off, off+n) in pieces and returns how many bytes from its
// beginning were done. It returns when none of its requests is in flight, so
// that the caller's buffer is the caller's again.
func (c *Client) pieces(off, n, size int64, submit func(l *link, off int64, n uint32) (*request, error)) (int64, error) {
	var flying [window]submitted
	var done int64
	var fault error
	head, tail := 0, 0 // flying[head%window : tail%window]
	for {
		for fault == nil && n > 0 && tail-head < window {
			piece := min(n, size)
			r, err := submit(c.pick(), off, uint32(piece))
			if err != nil {
				fault = err
				break
			}
			flying[tail%window] = submitted{r, piece}
			tail++
			off, n = off+piece, n-piece
		}
		if head == tail {
			return done, fault
		}
		s := flying[head%window]
		head++
		if err := <-s.request.done; err != nil {
			fault = first(fault, err)
		} else if fault == nil {
			done += s.size
		}
	}
}

func first(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// payloadPiece is the largest piece that carries data.
func (c *Client) payloadPiece() int64 { return min(pieceSize, int64(c.details.maxBlock)) }

// ReadAt follows io.ReaderAt. The data arrives in p without a copy, except
// what of it is less than a block of the server.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, c.check("read", off, int64(len(p)))
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= c.Size() {
		return 0, io.EOF
	}
	n := min(int64(len(p)), c.Size()-off)
	done, err := c.read(p[:n], off)
	if err == nil && done < len(p) {
		err = io.EOF
	}
	return done, err
}

func (c *Client) read(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at, rest := off+int64(done), p[done:]
		first, after := c.inner(at, int64(len(rest)))
		var n int
		var err error
		if first > at || after == first {
			n, err = c.readPartial(rest, at)
		} else {
			n, err = c.readWhole(rest[:after-first], at)
		}
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (c *Client) readWhole(p []byte, off int64) (int, error) {
	size := c.payloadPiece()
	if c.links[0].memory != nil {
		size = min(size, placeSize)
	}
	n, err := c.pieces(off, int64(len(p)), size, func(l *link, at int64, n uint32) (*request, error) {
		r := newRequest(cmdRead, at, n)
		r.buf = p[at-off:][:n]
		return r, l.submit(r, nil)
	})
	return int(n), err
}

// readPartial reads what p wants of the block that off lies in.
func (c *Client) readPartial(p []byte, off int64) (int, error) {
	block := c.blocks.Get().(*[]byte)
	defer c.blocks.Put(block)
	first, after := c.aligned(off, 1)
	if _, err := c.readWhole((*block)[:after-first], first); err != nil {
		return 0, err
	}
	return copy(p, (*block)[off-first:after-first]), nil
}

// WriteAt follows io.WriterAt. The data is durable after the next Flush.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	return c.write(p, off, 0)
}

// WriteThrough is WriteAt, durable when it returns.
func (c *Client) WriteThrough(p []byte, off int64) (int, error) {
	if c.details.has(flagFUA) {
		return c.write(p, off, cmdFlagFUA)
	}
	n, err := c.write(p, off, 0)
	if err != nil {
		return n, err
	}
	return n, c.Flush()
}

func (c *Client) write(p []byte, off int64, flags uint16) (int, error) {
	if err := c.writable("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		at, rest := off+int64(done), p[done:]
		first, after := c.inner(at, int64(len(rest)))
		var n int
		var err error
		if first > at || after == first {
			n, err = c.writePartial(rest, at, flags)
		} else {
			n, err = c.writeWhole(rest[:after-first], at, flags)
		}
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (c *Client) writeWhole(p []byte, off int64, flags uint16) (int, error) {
	n, err := c.pieces(off, int64(len(p)), c.payloadPiece(), func(l *link, at int64, n uint32) (*request, error) {
		r := newRequest(cmdWrite, at, n)
		r.flags = flags
		return r, l.submit(r, p[at-off:][:n])
	})
	return int(n), err
}

// writePartial changes what p covers of the block that off lies in. Calls for
// parts of one block do not lose each other's bytes.
func (c *Client) writePartial(p []byte, off int64, flags uint16) (int, error) {
	c.partial.Lock()
	defer c.partial.Unlock()
	block := c.blocks.Get().(*[]byte)
	defer c.blocks.Put(block)
	first, after := c.aligned(off, 1)
	whole := (*block)[:after-first]
	if _, err := c.readWhole(whole, first); err != nil {
		return 0, fmt.Errorf("read the block of a partial write: %w", err)
	}
	n := copy(whole[off-first:], p)
	if _, err := c.writeWhole(whole, first, flags); err != nil {
		return 0, err
	}
	return n, nil
}

// Zero makes [off, off+n) read as zeroes, as a hole where the server can.
func (c *Client) Zero(off, n int64) error {
	if err := c.writable("write zeroes", off, n); err != nil {
		return err
	}
	first, after := c.inner(off, n)
	if err := c.zeroEdge(off, first); err != nil {
		return err
	}
	if err := c.zeroWhole(first, after-first); err != nil {
		return err
	}
	return c.zeroEdge(after, off+n)
}

// zeroEdge zeroes a range that is less than a block, at each end of a block.
func (c *Client) zeroEdge(first, after int64) error {
	for first < after {
		n, err := c.write(zeroes[:min(after-first, int64(c.details.minBlock))], first, 0)
		if err != nil {
			return err
		}
		first += int64(n)
	}
	return nil
}

func (c *Client) zeroWhole(off, n int64) error {
	if !c.details.has(flagWriteZeroes) {
		_, err := c.pieces(off, n, min(c.payloadPiece(), int64(len(zeroes))), func(l *link, at int64, n uint32) (*request, error) {
			r := newRequest(cmdWrite, at, n)
			return r, l.submit(r, zeroes[:n])
		})
		return err
	}
	_, err := c.pieces(off, n, zeroPiece, func(l *link, at int64, n uint32) (*request, error) {
		r := newRequest(cmdWriteZeroes, at, n)
		return r, l.submit(r, nil)
	})
	return err
}

// Trim hints that [off, off+n) is not needed any more. What it reads as later
// is not known; Zero is the call that says. Whole blocks are trimmed, if the
// server knows how.
func (c *Client) Trim(off, n int64) error {
	if err := c.writable("trim", off, n); err != nil {
		return err
	}
	first, after := c.inner(off, n)
	if !c.details.has(flagTrim) {
		return nil
	}
	_, err := c.pieces(first, after-first, zeroPiece, func(l *link, at int64, n uint32) (*request, error) {
		r := newRequest(cmdTrim, at, n)
		return r, l.submit(r, nil)
	})
	return err
}

// Cache hints that [off, off+n) will be read soon.
func (c *Client) Cache(off, n int64) error {
	if err := c.check("cache", off, n); err != nil || !c.details.has(flagCache) {
		return err
	}
	first, after := c.aligned(off, n)
	_, err := c.pieces(first, after-first, zeroPiece, func(l *link, at int64, n uint32) (*request, error) {
		r := newRequest(cmdCache, at, n)
		return r, l.submit(r, nil)
	})
	return err
}

// Flush returns when every write that returned before is durable. A writable
// export that cannot promise it is sdk.ErrUnsupported; one flush is good for
// all connections, since several are used only where the server says so.
func (c *Client) Flush() error {
	switch {
	case c.ReadOnly():
		return nil
	case !c.details.has(flagFlush):
		return fmt.Errorf("nbd flush: the server cannot make writes durable: %w", sdk.ErrUnsupported)
	}
	r := newRequest(cmdFlush, 0, 0)
	if err := c.pick().submit(r, nil); err != nil {
		return err
	}
	return <-r.done
}

// Broken reports whether err ended the client, as opposed to one request.
func Broken(err error) bool {
	var refusal *ReplyError
	return err != nil && !errors.As(err, &refusal) &&
		(errors.Is(err, sdk.ErrUnavailable) || errors.Is(err, errClosed))
}
