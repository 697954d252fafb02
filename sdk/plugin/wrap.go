package plugin

import (
	"context"
	"net"

	"github.com/holdfast-dr/holdfast/sdk"
)

// wrapped is dialer, or the ordinary way to an address if it is nil, with what
// Launch.WrapData puts around each connection.
func (r *remote) wrapped(a sdk.Address, dialer func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	if r.wrapData == nil {
		return dialer
	}
	if dialer == nil {
		dialer = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, a.Network, a.Addr)
		}
	}
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := dialer(ctx)
		if err != nil {
			return nil, err
		}
		return r.wrapData(conn), nil
	}
}
