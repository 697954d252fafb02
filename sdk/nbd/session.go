package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// session is one connection at the server.
type session struct {
	server *Server
	raw    net.Conn
	conn   net.Conn // raw, or TLS over it
	ended  chan struct{}

	noZeroes   bool
	structured bool
	selected   []selection // negotiated meta contexts
	selectedOf string      // the export that they belong to

	memory *sharedMemory     // that the client has mapped, too; nil: there is none
	found  map[string]Export // what Exports gave
	export Export            // the one of the transmission phase

	// transmission
	in      *bufio.Reader
	running sync.WaitGroup
	slots   chan struct{}
	budget  *budget
	writing sync.Mutex // guards out, head, fault
	out     *frameWriter
	head    []byte
	fault   error // the first failed reply

	mu      sync.Mutex // guards the fields below
	opened  map[string]bool
	winding bool // no more requests are read
	killed  bool // the connection was cut
}

// selection is a meta context that the client chose.
type selection struct {
	id   uint32
	name string
}

func newSession(s *Server, conn net.Conn) *session {
	return &session{
		server: s, raw: conn, conn: conn, ended: make(chan struct{}),
		slots:  make(chan struct{}, maxServing),
		budget: newBudget(maxServingBytes),
		found:  make(map[string]Export),
		opened: make(map[string]bool),
	}
}

// wind lets the session finish what it has received.
func (n *session) wind() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.winding = true
	_ = n.raw.SetReadDeadline(time.Unix(1, 0))
}

// cut closes the connection if it has to do with the export.
func (n *session) cut(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.opened[name] {
		return false
	}
	n.killed = true
	_ = n.raw.Close()
	return true
}

// deadline sets the time by which the client's next bytes have to be there,
// unless the session is winding down.
func (n *session) deadline(t time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.winding {
		return errWinding
	}
	return n.raw.SetReadDeadline(t)
}

var errWinding = errors.New("the server is closing")

// lookup asks for an export, once for each name. The name is entered first, so
// that a Kick either finds the session or comes before Exports is asked.
func (n *session) lookup(name string) (Export, optReply) {
	if e, ok := n.found[name]; ok {
		return e, repAck
	}
	n.mu.Lock()
	n.opened[name] = true
	n.mu.Unlock()
	e, err := n.server.Exports(name)
	if err == nil {
		err = e.validate()
	}
	switch {
	case err == nil:
		n.found[name] = e
		return e, repAck
	case errors.Is(err, sdk.ErrNotFound):
		return e, repErrUnknown
	case errors.Is(err, sdk.ErrDenied), errors.Is(err, sdk.ErrFenced):
		return e, repErrPolicy
	}
	n.server.log().Warn("open nbd export", "error", err)
	return e, repErrPlatform
}

// errLeft ends a session whose client said goodbye.
var errLeft = errors.New("the client left")

func (n *session) serve(ctx context.Context) error {
	defer func() { n.memory.close() }()
	defer n.shut()
	timer := time.AfterFunc(n.server.handshakeTimeout(), func() { _ = n.raw.Close() })
	err := n.negotiate(ctx)
	if !timer.Stop() && err != nil {
		err = fmt.Errorf("handshake took too long: %w", err)
	}
	if err == nil {
		err = n.transmit(ctx)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.killed:
		return fmt.Errorf("nbd session: %w", errKicked)
	case n.winding, errors.Is(err, errLeft), left(err):
		return nil
	}
	return fmt.Errorf("nbd session: %w", err)
}

// shut closes the connection. Under TLS the goodbye is bounded in time.
func (n *session) shut() {
	if secured(n.conn) {
		_ = n.raw.SetWriteDeadline(time.Now().Add(farewell))
		_ = n.conn.Close()
	}
	_ = n.raw.Close()
}

// negotiate is the handshake up to the transmission phase.
func (n *session) negotiate(ctx context.Context) error {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, handshakeFixed|handshakeNoZeroes)
	if _, err := n.conn.Write(hello); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(n.conn, flags[:]); err != nil {
		return err
	}
	f := binary.BigEndian.Uint32(flags[:])
	if f&^uint32(handshakeFixed|handshakeNoZeroes) != 0 {
		return violated("client flags %#x", f)
	}
	n.noZeroes = f&uint32(handshakeNoZeroes) != 0
	for range maxOptions {
		opt, data, err := readOption(n.conn)
		if err != nil {
			return err
		}
		if done, err := n.option(ctx, opt, data); done || err != nil {
			return err
		}
	}
	return violated("more than %d options", maxOptions)
}

func readOption(r io.Reader) (option, []byte, error) {
	var h [optionHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	if m := binary.BigEndian.Uint64(h[:]); m != magicOption {
		return 0, nil, violated("option magic %#x", m)
	}
	opt := option(binary.BigEndian.Uint32(h[8:]))
	length := binary.BigEndian.Uint32(h[12:])
	if length > maxOptionData {
		return 0, nil, violated("%s of %d bytes", opt, length)
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, unexpected(err)
	}
	return opt, data, nil
}

// option answers one option and reports whether transmission begins.
func (n *session) option(ctx context.Context, opt option, data []byte) (bool, error) {
	if n.server.RequireTLS && !secured(n.conn) {
		switch opt {
		case optStartTLS, optAbort:
		case optExportName:
			return false, violated("EXPORT_NAME before STARTTLS")
		default:
			return false, n.answer(opt, repErrTLS, []byte("STARTTLS comes first"))
		}
	}
	switch opt {
	case optExportName:
		return true, n.byName(string(data))
	case optAbort:
		_ = n.answer(opt, repAck, nil)
		return false, errLeft
	case optList:
		return false, n.list(data)
	case optStartTLS:
		return false, n.startTLS(ctx, data)
	case optInfo, optGo:
		return n.info(opt, data)
	case optStructured:
		if len(data) != 0 {
			return false, n.answer(opt, repErrInvalid, nil)
		}
		n.structured = true
		return false, n.answer(opt, repAck, nil)
	case optMemory:
		return false, n.offerMemory(data)
	case optListMeta, optSetMeta:
		return false, n.meta(opt, data)
	}
	return false, n.answer(opt, repErrUnsup, nil)
}

func (n *session) answer(opt option, typ optReply, data []byte) error {
	_, err := n.conn.Write(appendOptReply(nil, opt, typ, data))
	return err
}

func (n *session) list(data []byte) error {
	if len(data) != 0 {
		return n.answer(optList, repErrInvalid, nil)
	}
	if n.server.List == nil {
		return n.answer(optList, repErrPolicy, []byte("exports are not listed"))
	}
	names := n.server.List()
	var b []byte
	for _, name := range names[:min(len(names), maxOptionReplies-1)] {
		b = appendOptReply(b, optList, repServer, appendString(nil, name))
	}
	_, err := n.conn.Write(appendOptReply(b, optList, repAck, nil))
	return err
}

// startTLS upgrades the connection. Nothing that was said before counts.
func (n *session) startTLS(ctx context.Context, data []byte) error {
	switch {
	case len(data) != 0 || secured(n.conn):
		return n.answer(optStartTLS, repErrInvalid, nil)
	case n.server.TLS == nil:
		return n.answer(optStartTLS, repErrPolicy, []byte("no TLS here"))
	}
	if err := n.answer(optStartTLS, repAck, nil); err != nil {
		return err
	}
	config := n.server.TLS.Clone()
	floor := uint16(tls.VersionTLS13)
	if n.server.AllowTLS12 {
		floor = tls.VersionTLS12
	}
	config.MinVersion = max(config.MinVersion, floor)
	conn := tls.Server(n.raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("start TLS: %w", err)
	}
	n.conn = conn
	n.structured, n.selected, n.selectedOf = false, nil, ""
	n.memory.close()
	n.memory = nil
	clear(n.found)
	return nil
}

// byName is EXPORT_NAME, which has no way to refuse but to hang up.
func (n *session) byName(name string) error {
	if len(name) > maxString {
		return violated("export name of %d bytes", len(name))
	}
	e, typ := n.lookup(name)
	if typ != repAck {
		return fmt.Errorf("export refused: %w", optionError(optExportName, typ, nil))
	}
	if e.minBlock() > 1 {
		return fmt.Errorf("client cannot learn the block size: %w", sdk.ErrUnsupported)
	}
	n.adopt(name, e)
	answer := binary.BigEndian.AppendUint64(nil, uint64(e.Size))
	answer = binary.BigEndian.AppendUint16(answer, e.flags(n.structured))
	if !n.noZeroes {
		answer = append(answer, make([]byte, 124)...)
	}
	_, err := n.conn.Write(answer)
	return err
}

// adopt makes an export the one of the transmission phase. Meta contexts that
// were chosen for another export do not count.
func (n *session) adopt(name string, e Export) {
	n.export = e
	if n.selectedOf != name {
		n.selected = nil
	}
}

func (n *session) info(opt option, data []byte) (bool, error) {
	request, err := parseInfoRequest(data)
	if err != nil {
		return false, n.answer(opt, repErrInvalid, nil)
	}
	e, typ := n.lookup(request.export)
	if typ != repAck {
		return false, n.answer(opt, typ, nil)
	}
	if e.minBlock() > 1 && !slices.Contains(request.infos, infoBlockSize) {
		return false, n.answer(opt, repErrBlockSize, nil)
	}
	var b []byte
	for _, info := range n.infos(request, &e) {
		b = appendOptReply(b, opt, repInfo, info)
	}
	if _, err := n.conn.Write(appendOptReply(b, opt, repAck, nil)); err != nil {
		return false, err
	}
	if opt == optGo {
		n.adopt(request.export, e)
	}
	return opt == optGo, nil
}

func (n *session) infos(request infoRequest, e *Export) [][]byte {
	size := binary.BigEndian.AppendUint16(nil, infoExport)
	size = binary.BigEndian.AppendUint64(size, uint64(e.Size))
	size = binary.BigEndian.AppendUint16(size, e.flags(n.structured))
	all := [][]byte{size}
	if slices.Contains(request.infos, infoName) {
		all = append(all, append(binary.BigEndian.AppendUint16(nil, infoName), request.export...))
	}
	if slices.Contains(request.infos, infoDescription) && e.Description != "" {
		text := e.Description[:min(len(e.Description), maxString)]
		all = append(all, append(binary.BigEndian.AppendUint16(nil, infoDescription), text...))
	}
	blocks := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	blocks = binary.BigEndian.AppendUint32(blocks, e.minBlock())
	blocks = binary.BigEndian.AppendUint32(blocks, e.preferredBlock())
	blocks = binary.BigEndian.AppendUint32(blocks, maxPayload)
	return append(all, blocks)
}

// meta lists or chooses meta contexts.
func (n *session) meta(opt option, data []byte) error {
	request, err := parseMetaRequest(data)
	if err != nil || !n.structured {
		return n.answer(opt, repErrInvalid, nil)
	}
	if opt == optSetMeta {
		n.selected, n.selectedOf = nil, request.export
	}
	e, typ := n.lookup(request.export)
	if typ != repAck {
		return n.answer(opt, typ, nil)
	}
	var b []byte
	for i, name := range e.contexts() {
		if !matches(opt, request.queries, name) {
			continue
		}
		s := selection{uint32(i + 1), name}
		id := s.id
		if opt == optListMeta {
			id = 0
		} else {
			n.selected = append(n.selected, s)
		}
		b = appendOptReply(b, opt, repMeta, append(binary.BigEndian.AppendUint32(nil, id), name...))
	}
	_, err = n.conn.Write(appendOptReply(b, opt, repAck, nil))
	return err
}

// matches reports whether the queries ask for a context. Only a list takes
// namespaces for everything in them, and no query for everything.
func matches(opt option, queries []string, name string) bool {
	if opt == optListMeta && len(queries) == 0 {
		return true
	}
	return slices.ContainsFunc(queries, func(q string) bool {
		return q == name || opt == optListMeta && strings.HasSuffix(q, ":") && strings.HasPrefix(name, q)
	})
}
