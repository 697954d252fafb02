package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// tape is a connection whose other end said everything beforehand and hears
// nothing.
type tape struct {
	io.Reader
	closed chan struct{}
}

func newTape(said []byte) *tape {
	return &tape{bytes.NewReader(said), make(chan struct{}, 1)}
}

func (t *tape) Write(p []byte) (int, error)      { return len(p), nil }
func (t *tape) Close() error                     { return nil }
func (t *tape) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (t *tape) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (t *tape) SetDeadline(time.Time) error      { return nil }
func (t *tape) SetReadDeadline(time.Time) error  { return nil }
func (t *tape) SetWriteDeadline(time.Time) error { return nil }

func seed(f *testing.F, text string) []byte { return unhex(f, text) }

// FuzzClientHandshake: whatever a server says, the client either has an export
// of a sane size or an error.
func FuzzClientHandshake(f *testing.F) {
	f.Add(seed(f, wireHello+wireAck8+"\n"+wireMetaReply+"\n"+wireGoReply))
	f.Add(seed(f, "4e42444d41474943 49484156454f5054 0000 0000000000002000 0001"))
	f.Add(seed(f, wireHello+"0003e889045565a9 00000008 80000001 00000000 0003e889045565a9 00000007 80000001 00000000 0000000000002000 0001"))
	f.Fuzz(func(t *testing.T, said []byte) {
		o := Options{Export: "disk", MetaContexts: []string{ContextAllocation},
			Dialer: func(context.Context) (net.Conn, error) { return newTape(said), nil }}
		h, d, err := open(t.Context(), o)
		if err == nil {
			_ = h.conn.Close()
			block := d.minBlock
			if d.size < 0 || block == 0 || block&(block-1) != 0 || d.maxBlock < block || d.maxBlock > maxPayload || d.maxBlock%block != 0 {
				t.Errorf("accepted %+v", d)
			}
		}
		_, _ = List(t.Context(), o)
		_, _ = Inspect(t.Context(), o)
	})
}

// FuzzClientReplies: whatever a server answers to a read, a block status and a
// write, each ends, and a read that succeeds has filled its buffer.
func FuzzClientReplies(f *testing.F) {
	f.Add(true, seed(f, "668e33ef 0001 0001 0000000000000001 00000010 0000000000001000 6461746164617461"))
	f.Add(true, seed(f, "668e33ef 0000 0002 0000000000000001 0000000c 0000000000001000 00000004 668e33ef 0001 0001 0000000000000001 0000000c 0000000000001004 64617461"))
	f.Add(true, seed(f, "668e33ef 0001 0005 0000000000000002 00000014 00000007 00000800 00000003 00000800 00000000 67446698 00000000 0000000000000003"))
	f.Add(true, seed(f, "668e33ef 0001 8001 0000000000000001 00000008 00000005 0002 6e6f"))
	f.Add(false, seed(f, "67446698 00000000 0000000000000001 6461746164617461 67446698 00000005 0000000000000003"))
	f.Fuzz(func(t *testing.T, structured bool, said []byte) {
		d := &details{size: 8192, structured: structured, flags: flagHasFlags, minBlock: 1, maxBlock: maxPayload}
		l := newLink(newTape(said), d, new(tally), time.Minute, new(fate), func(error) {})
		read := newRequest(cmdRead, 4096, 8)
		read.buf = bytes.Repeat([]byte{0xa5}, 8)
		status := newRequest(cmdBlockStatus, 4096, 4096)
		status.context = 7
		write := newRequest(cmdWrite, 0, 1)
		all := []*request{read, status, write}
		for _, r := range all {
			if err := l.submit(r, nil); err != nil {
				t.Fatal(err)
			}
		}
		l.receive() // until the tape ends
		for _, r := range all {
			select {
			case err := <-r.done:
				switch {
				case r == read && err == nil && structured && bytes.Contains(r.buf, []byte{0xa5}) && !bytes.Contains(said, []byte{0xa5}):
					t.Errorf("a read left bytes out: %x", r.buf)
				case r == status && err == nil && len(trim(r.extents, 4096)) == 0:
					t.Error("a block status of nothing")
				case err != nil && !Broken(err) && !errors.As(err, new(*ReplyError)):
					t.Errorf("an error of no kind: %v", err)
				}
			default:
				t.Errorf("%s never ended", r.command)
			}
		}
	})
}

// FuzzServer: whatever a client says, the session ends without touching bytes
// outside of its disk.
func FuzzServer(f *testing.F) {
	hello := wireFlags + wireStructured + wireMeta + "\n" + wireGo
	f.Add(seed(f, hello+wireRead+wireHole+wireStatus+wireWrite+wireZero+wireTrim+wireFlush+wireFUA+wireBye))
	f.Add(seed(f, "00000000 49484156454f5054 00000001 00000004 6469736b"+wireRead+wireWrite+wireBye))
	f.Add(seed(f, wireFlags+"49484156454f5054 00000003 00000000 49484156454f5054 00000005 00000000 49484156454f5054 00000002 00000000"))
	f.Fuzz(func(t *testing.T, said []byte) {
		e := guarded{t}.export()
		_ = single("disk", e).ServeConn(t.Context(), newTape(said))
	})
}

// guarded is an empty disk of 8 KiB that fails the test on accesses outside.
type guarded struct{ t *testing.T }

func (g guarded) export() Export { return Export{Size: 8192, Reader: g, Writer: g} }

func (g guarded) check(off, n int64) {
	if off < 0 || n < 0 || off+n > 8192 || off > 8192 {
		g.t.Errorf("access to [%d, +%d)", off, n)
	}
}

func (g guarded) ReadAt(p []byte, off int64) (int, error) {
	g.check(off, int64(len(p)))
	return len(p), nil
}

func (g guarded) WriteAt(p []byte, off int64) (int, error) {
	g.check(off, int64(len(p)))
	return len(p), nil
}

func (g guarded) Zero(off, n int64) error { g.check(off, n); return nil }
func (g guarded) Trim(off, n int64) error { g.check(off, n); return nil }
func (g guarded) Flush() error            { return sdk.ErrUnavailable }
