package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Options say which export to reach, and how. The zero value of everything but
// Network and Addr works.
type Options struct {
	Network string // "unix" or "tcp"
	Addr    string // socket path, or host:port
	Export  string // "" is the server's default export

	// TLS, if set, makes the client insist on STARTTLS. Where it names no
	// server, the host of Addr is expected. The version is at least 1.3 unless
	// AllowTLS12 is set.
	TLS        *tls.Config
	AllowTLS12 bool

	// MetaContexts are the block status contexts to negotiate. Those that the
	// server lacks are missing from Client.MetaContexts; it is no error.
	MetaContexts []string

	// Connections is how many to open; 0 means 1. More than one is used only
	// for an export that is read-only or promises consistency between
	// connections, and fewer are used when the server does not take them all.
	Connections int

	// Memory lets the server put what is read into memory that both ends have
	// mapped, where both know how: over a Unix socket, without TLS, to a Server of
	// this package.
	Memory bool

	// Timeout is how long the server may be silent while it owes an answer; 0
	// means DefaultTimeout. It also bounds the handshake of each connection.
	Timeout time.Duration

	// Dialer replaces the ordinary way to connect, for callers that reach the
	// server through something else. It is called once for each connection.
	Dialer func(ctx context.Context) (net.Conn, error)

	tally *tally // counts what moves; nil: nobody asks
}

// DefaultTimeout is far above what a healthy server takes for a read or a
// write, and short enough for a job to notice that its back-end died.
const DefaultTimeout = 30 * time.Second

// maxConnections is more than any server profits from.
const maxConnections = 64

func (o Options) timeout() time.Duration {
	if o.Timeout > 0 {
		return o.Timeout
	}
	return DefaultTimeout
}

func (o Options) connections() int {
	return min(max(o.Connections, 1), maxConnections)
}

// details are what the handshake found out about an export.
type details struct {
	size        int64
	flags       uint16
	structured  bool
	contexts    map[string]uint32 // negotiated meta contexts and their ids
	description string
	minBlock    uint32
	preferred   uint32
	maxBlock    uint32 // the largest payload, at most maxPayload
}

func (d *details) has(flag uint16) bool { return d.flags&flag != 0 }

// connect dials and, with TLS, secures one connection up to where options are
// haggled. The result has a deadline until its settle is called.
func connect(ctx context.Context, o Options) (*haggle, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout())
	conn, err := dial(ctx, o)
	if err != nil {
		cancel()
		return nil, err
	}
	h := &haggle{conn: conn, raw: conn, options: o, cancel: cancel}
	// The context's end, be it the caller's or the time-out, shows up as an
	// i/o time-out of whatever the handshake is waiting for.
	h.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	h.cause = func() error { return context.Cause(ctx) }
	if err := h.greet(ctx); err != nil {
		return nil, h.abandon(err)
	}
	return h, nil
}

func dial(ctx context.Context, o Options) (net.Conn, error) {
	call := o.Dialer
	if call == nil {
		call = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, o.Network, o.Addr)
		}
	}
	conn, err := call(ctx)
	switch {
	case err == nil:
	case sdk.CodeOf(err) != sdk.CodeUnknown: // a Dialer knows what it means
		return nil, fmt.Errorf("dial nbd server: %w", err)
	default:
		return nil, fmt.Errorf("dial nbd server: %w: %w", sdk.ErrUnavailable, err)
	}
	if o.tally != nil {
		conn = &counted{Conn: conn, tally: o.tally}
	}
	return conn, nil
}

// haggle is a connection in the handshake.
type haggle struct {
	conn       net.Conn // what is spoken over: raw, or TLS over it
	raw        net.Conn
	options    Options
	fixed      bool
	noZeroes   bool
	structured bool
	contexts   map[string]uint32
	memory     *sharedMemory

	cancel context.CancelFunc
	stop   func() bool
	cause  func() error
}

// abandon closes the connection and says why the handshake ended.
func (h *haggle) abandon(err error) error {
	if cause := h.cause(); cause != nil {
		err = fmt.Errorf("%w: %w", sdk.ErrUnavailable, cause)
	} else if broken(err) {
		err = fmt.Errorf("%w: %w", sdk.ErrUnavailable, unexpected(err))
	}
	h.stop()
	h.cancel()
	h.drop()
	return fmt.Errorf("nbd handshake: %w", err)
}

// broken reports whether err is about the connection and not about what was
// said on it.
func broken(err error) bool {
	var network net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.ErrClosedPipe) || errors.As(err, &network)
}

// settle ends the handshake: the connection has no deadline any more.
func (h *haggle) settle() error {
	if !h.stop() {
		return h.abandon(h.cause())
	}
	h.cancel()
	if err := h.conn.SetDeadline(time.Time{}); err != nil {
		h.drop()
		return fmt.Errorf("nbd handshake: %w: %w", sdk.ErrUnavailable, err)
	}
	return nil
}

// leave ends the handshake without an export.
func (h *haggle) leave() {
	if h.fixed {
		_ = h.send(optAbort, nil)
	}
	h.stop()
	h.cancel()
	_ = h.conn.Close()
}

func (h *haggle) greet(ctx context.Context) error {
	var hello [18]byte
	if _, err := io.ReadFull(h.conn, hello[:]); err != nil {
		return err
	}
	if m := binary.BigEndian.Uint64(hello[0:]); m != magicServer {
		return violated("greeting %#x: not an NBD server", m)
	}
	switch m := binary.BigEndian.Uint64(hello[8:]); m {
	case magicOption:
	case magicOldstyle:
		return fmt.Errorf("the server speaks oldstyle negotiation only: %w", sdk.ErrUnsupported)
	default:
		return violated("negotiation magic %#x", m)
	}
	flags := binary.BigEndian.Uint16(hello[16:])
	h.fixed = flags&handshakeFixed != 0
	h.noZeroes = flags&handshakeNoZeroes != 0
	if err := h.write(binary.BigEndian.AppendUint32(nil, uint32(flags&(handshakeFixed|handshakeNoZeroes)))); err != nil {
		return err
	}
	if h.options.TLS == nil {
		return nil
	}
	return h.secure(ctx)
}

// secure upgrades to TLS. Nothing was read ahead, so that no plaintext after
// the server's answer can be taken for something said under TLS.
func (h *haggle) secure(ctx context.Context) error {
	if !h.fixed {
		return fmt.Errorf("STARTTLS with a server without fixed newstyle: %w", sdk.ErrUnsupported)
	}
	if _, err := h.ask(optStartTLS, nil, nil); err != nil {
		return err
	}
	config := h.options.TLS.Clone()
	floor := uint16(tls.VersionTLS13)
	if h.options.AllowTLS12 {
		floor = tls.VersionTLS12
	}
	config.MinVersion = max(config.MinVersion, floor)
	if host, _, err := net.SplitHostPort(h.options.Addr); err == nil && config.ServerName == "" {
		config.ServerName = host
	}
	conn := tls.Client(h.raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("start TLS: %w", err)
	}
	h.conn = conn
	return nil
}

func (h *haggle) write(b []byte) error {
	_, err := h.conn.Write(b)
	return err
}

func (h *haggle) send(opt option, data []byte) error {
	return h.write(appendOption(nil, opt, data))
}

// ask sends an option, hands every reply but the final one to each, and reports
// whether the final one was an acknowledgement.
func (h *haggle) ask(opt option, data []byte, each func(optReply, []byte) error) (bool, error) {
	if err := h.send(opt, data); err != nil {
		return false, err
	}
	for range maxOptionReplies {
		typ, reply, err := readOptReply(h.conn, opt)
		switch {
		case err != nil:
			return false, err
		case typ == repAck:
			return true, nil
		case typ&repError != 0:
			return false, optionError(opt, typ, reply)
		case each == nil:
			return false, violated("reply %d to %s", typ, opt)
		}
		if err := each(typ, reply); err != nil {
			return false, err
		}
	}
	return false, violated("more than %d replies to %s", maxOptionReplies, opt)
}

// optional is ask for an option without which the client can do.
func (h *haggle) optional(opt option, data []byte, each func(optReply, []byte) error) (bool, error) {
	ok, err := h.ask(opt, data, each)
	if errors.Is(err, sdk.ErrUnsupported) {
		return false, nil
	}
	return ok, err
}

// enter goes all the way to the transmission phase.
func (h *haggle) enter() (*details, error) {
	if !h.fixed {
		return h.enterByName()
	}
	if err := h.prepare(); err != nil {
		return nil, err
	}
	if err := h.share(); err != nil {
		return nil, err
	}
	d, err := h.describe(optGo)
	if errors.Is(err, sdk.ErrUnsupported) {
		return h.enterByName()
	}
	return d, err
}

// prepare asks for structured replies and meta contexts.
func (h *haggle) prepare() (err error) {
	h.structured, err = h.optional(optStructured, nil, nil)
	if err != nil || !h.structured || len(h.options.MetaContexts) == 0 {
		return err
	}
	wanted := h.options.MetaContexts
	h.contexts = make(map[string]uint32)
	request := metaRequest{export: h.options.Export, queries: wanted}
	_, err = h.optional(optSetMeta, request.encode(), func(typ optReply, data []byte) error {
		id, name, err := parseMetaReply(typ, data)
		if err != nil {
			return err
		}
		if _, twice := h.contexts[name]; twice || !slices.Contains(wanted, name) {
			return violated("meta context %q, which was not asked for", name)
		}
		h.contexts[name] = id
		return nil
	})
	return err
}

func parseMetaReply(typ optReply, data []byte) (id uint32, name string, err error) {
	f := fields{rest: data}
	id = f.uint32()
	if typ != repMeta || f.bad || len(f.rest) > maxString {
		return 0, "", violated("malformed meta context reply")
	}
	return id, string(f.rest), nil
}

// describe sends OPT_GO, which enters transmission, or OPT_INFO, which does
// not.
func (h *haggle) describe(opt option) (*details, error) {
	d := &details{minBlock: 1, preferred: defaultPreferredBlock, maxBlock: maxPayload}
	known := false
	request := infoRequest{export: h.options.Export, infos: []uint16{infoBlockSize, infoDescription}}
	_, err := h.ask(opt, request.encode(), func(typ optReply, data []byte) error {
		if typ != repInfo {
			return violated("reply %d to %s", typ, opt)
		}
		f := fields{rest: data}
		kind := f.uint16()
		known = known || kind == infoExport
		return d.learn(kind, &f)
	})
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, violated("%s without the export's size", opt)
	}
	d.structured, d.contexts = h.structured, h.contexts
	return d, nil
}

// learn takes in one INFO reply. Kinds that it does not know are skipped.
func (d *details) learn(kind uint16, f *fields) error {
	switch kind {
	case infoExport:
		size := f.uint64()
		d.flags = f.uint16()
		if !f.done() {
			return violated("malformed export information")
		}
		return d.setSize(size)
	case infoDescription:
		if len(f.rest) > maxString {
			return violated("description of %d bytes", len(f.rest))
		}
		d.description = string(f.rest)
	case infoBlockSize:
		smallest, preferred, largest := f.uint32(), f.uint32(), f.uint32()
		if !f.done() {
			return violated("malformed block sizes")
		}
		return d.setBlocks(smallest, preferred, largest)
	}
	return nil
}

func (d *details) setSize(size uint64) error {
	if size > math.MaxInt64 {
		return violated("export of %d bytes", size)
	}
	d.size = int64(size)
	return nil
}

// setBlocks checks the three sizes. The largest may be all ones, for no limit,
// and need not be a multiple of the smallest; it is rounded down here.
func (d *details) setBlocks(smallest, preferred, largest uint32) error {
	if smallest == 0 || smallest&(smallest-1) != 0 || smallest > maxMinBlock || largest < smallest {
		return violated("block sizes %d, %d, %d", smallest, preferred, largest)
	}
	d.minBlock, d.preferred = smallest, max(preferred, smallest)
	d.maxBlock = min(largest, maxPayload) &^ (smallest - 1)
	return nil
}

// enterByName enters transmission the way of servers without OPT_GO. An
// unknown name shows as a closed connection.
func (h *haggle) enterByName() (*details, error) {
	if err := h.send(optExportName, []byte(h.options.Export)); err != nil {
		return nil, err
	}
	answer := make([]byte, 10, 10+124)
	if !h.noZeroes {
		answer = answer[:10+124]
	}
	if _, err := io.ReadFull(h.conn, answer); err != nil {
		return nil, fmt.Errorf("open export, which the server may not have: %w", unexpected(err))
	}
	d := &details{
		flags: binary.BigEndian.Uint16(answer[8:]), structured: h.structured, contexts: h.contexts,
		minBlock: 1, preferred: defaultPreferredBlock, maxBlock: maxPayload,
	}
	return d, d.setSize(binary.BigEndian.Uint64(answer))
}

// Listing is one export of a server.
type Listing struct {
	Name        string
	Description string
}

// List asks a server for its exports. A server that does not tell is
// sdk.ErrDenied.
func List(ctx context.Context, o Options) ([]Listing, error) {
	h, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	var found []Listing
	_, err = h.ask(optList, nil, func(typ optReply, data []byte) error {
		f := fields{rest: data}
		entry := Listing{Name: f.text()}
		if typ != repServer || f.bad || len(f.rest) > maxString {
			return violated("malformed list entry")
		}
		entry.Description = string(f.rest)
		found = append(found, entry)
		return nil
	})
	if err != nil {
		return nil, h.abandon(err)
	}
	h.leave()
	return found, nil
}

// Info is what a server says about an export.
type Info struct {
	Size         int64
	ReadOnly     bool
	Description  string
	MinBlock     int64
	Preferred    int64
	MaxBlock     int64
	MetaContexts []string // every context of the export; nil if it has none
}

// Inspect asks a server about the export without opening it. A server without
// OPT_INFO is sdk.ErrUnsupported.
func Inspect(ctx context.Context, o Options) (Info, error) {
	h, err := connect(ctx, o)
	if err != nil {
		return Info{}, err
	}
	info, err := h.inspect()
	if err != nil {
		return Info{}, h.abandon(err)
	}
	h.leave()
	return info, nil
}

func (h *haggle) inspect() (Info, error) {
	d, err := h.describe(optInfo)
	if err != nil {
		return Info{}, err
	}
	info := Info{
		Size: d.size, ReadOnly: d.has(flagReadOnly), Description: d.description,
		MinBlock: int64(d.minBlock), Preferred: int64(d.preferred), MaxBlock: int64(d.maxBlock),
	}
	structured, err := h.optional(optStructured, nil, nil)
	if err != nil || !structured {
		return info, err
	}
	request := metaRequest{export: h.options.Export}
	_, err = h.optional(optListMeta, request.encode(), func(typ optReply, data []byte) error {
		_, name, err := parseMetaReply(typ, data)
		if err == nil {
			info.MetaContexts = append(info.MetaContexts, name)
		}
		return err
	})
	return info, err
}
