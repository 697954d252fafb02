package gateway

import (
	"context"
	"crypto/tls"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// watched is a context that ends, with errSilent, when the connection that its
// request uses has moved no byte for so long. A connection that a firewall
// forgot, or whose other end is stopped, says nothing by itself for a quarter of
// an hour. stop ends the watching, and waits for that.
func watched(ctx context.Context, quiet time.Duration) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var conn atomic.Pointer[socket] // until there is one, connecting has limits of its own
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if secured, ok := got.Conn.(*tls.Conn); ok {
			if s, ok := secured.NetConn().(*socket); ok {
				conn.Store(s)
			}
		}
	}})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		const looks = 4 // in one quiet time
		tick := time.NewTicker(max(quiet/looks, time.Millisecond))
		defer tick.Stop()
		last, still := int64(-1), 0
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			s := conn.Load()
			if s == nil {
				continue
			}
			if moved := s.moved.Load(); moved != last {
				last, still = moved, 0
				continue
			}
			if still++; still >= looks {
				cancel(errSilent)
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); <-ended }
}
