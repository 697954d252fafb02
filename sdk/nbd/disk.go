package nbd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"iter"
	"net"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Disk is a disk at an sdk.Address, read or written over NBD.
type Disk struct {
	*Client
	bitmap string
}

var (
	_ sdk.BlockReader = (*Disk)(nil)
	_ sdk.BlockWriter = (*Disk)(nil)
)

// Open dials an address. Allocation is negotiated always, the dirty bitmap if
// the address names one.
func Open(ctx context.Context, a sdk.Address) (*Disk, error) {
	return OpenThrough(ctx, a, nil)
}

// OpenThrough is Open for an address that is reached through something else;
// see Options.Dialer. nil is the ordinary way.
func OpenThrough(ctx context.Context, a sdk.Address, dialer func(context.Context) (net.Conn, error)) (*Disk, error) {
	o, err := AddressOptions(a)
	if err != nil {
		return nil, err
	}
	o.Dialer = dialer
	c, err := Dial(ctx, o)
	if err != nil {
		return nil, err
	}
	return &Disk{Client: c, bitmap: a.DirtyBitmap}, nil
}

// AddressOptions are the options with which Open dials an address.
func AddressOptions(a sdk.Address) (Options, error) {
	o := Options{
		Network: a.Network, Addr: a.Addr, Export: a.Export,
		Connections:  a.Connections,
		Memory:       a.Network == "unix" && a.TLS == nil,
		MetaContexts: []string{ContextAllocation},
	}
	if a.Network != "unix" && a.Network != "tcp" {
		return Options{}, fmt.Errorf("nbd address: network %q: %w", a.Network, sdk.ErrInvalid)
	}
	if a.DirtyBitmap != "" {
		o.MetaContexts = append(o.MetaContexts, a.DirtyBitmap)
	}
	if a.TLS == nil {
		return o, nil
	}
	config, err := addressTLS(a.TLS)
	if err != nil {
		return Options{}, err
	}
	o.TLS = config
	return o, nil
}

func addressTLS(t *sdk.AddressTLS) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: t.ServerName, RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(t.CA) {
		return nil, fmt.Errorf("nbd address: no certificate authority in its PEM: %w", sdk.ErrInvalid)
	}
	if len(t.Cert) == 0 && len(t.Key) == 0 {
		return config, nil
	}
	pair, err := tls.X509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("nbd address: client certificate: %w: %w", sdk.ErrInvalid, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// Shape says that an NBD server takes writes in any order.
func (d *Disk) Shape() sdk.Shape { return sdk.ShapeRandom }

// Dirty lists, in ascending order and without overlap, the extents that the
// address's bitmap has as changed. sdk.ErrMarkLost means that the address has
// no bitmap, or the server does not offer it: nothing is known then.
func (d *Disk) Dirty(ctx context.Context) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		if _, ok := d.details.contexts[d.bitmap]; !ok {
			yield(sdk.Extent{}, fmt.Errorf("nbd dirty bitmap %q: %w", d.bitmap, sdk.ErrMarkLost))
			return
		}
		for s, err := range d.BlockStatus(ctx, d.bitmap, 0, d.Size()) {
			if err == nil && s.Flags&StateDirty == 0 {
				continue
			}
			if !yield(sdk.Extent{Offset: s.Offset, Length: s.Length}, err) || err != nil {
				return
			}
		}
	}
}
