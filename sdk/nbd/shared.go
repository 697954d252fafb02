package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// Memory that both ends of a connection have mapped spares the disk's bytes the
// way through a socket of the same machine, which costs more than reading them.
// It is an extension of ours: a client asks for it with optMemory, and every
// other server answers that it does not know the option.
//
// The server makes the memory and its file goes to the client with the answer.
// It is divided into places. A read of cmdReadPlaced names the place that the
// server is to read into, behind its header (32 bits, the place's offset), and
// is answered by chunkPlaced, which says what of the disk is there now (offset
// and length, as in chunkHole), or by chunkHole.
//
// Neither end trusts the other with more than the bytes of the disk: the file is
// sealed, so nobody can shrink what the other has mapped, the client maps it to
// read only, and copies a place once, so that what it hands on cannot change.
const (
	placeSize  = 512 << 10
	places     = 4
	memorySize = places * placeSize
)

// sharedMemory is the mapping of one end. nil: there is none.
type sharedMemory struct{ bytes []byte }

// wantsMemory reports whether a connection can carry the file of a memory.
func wantsMemory(conn net.Conn) (*net.UnixConn, bool) {
	if c, ok := conn.(*counted); ok {
		conn = c.Conn
	}
	socket, ok := conn.(*net.UnixConn)
	return socket, ok && memoryPossible
}

// share asks the server for memory. A server without it is no error.
func (h *haggle) share() error {
	socket, ok := wantsMemory(h.conn)
	if !ok || !h.structured || !h.options.Memory {
		return nil
	}
	if err := h.send(optMemory, nil); err != nil {
		return err
	}
	file, head, err := receiveFile(socket, optReplyHeaderSize)
	if err != nil {
		return err
	}
	if file != nil {
		defer file.Close()
	}
	if h.options.tally != nil {
		h.options.tally.received.Add(int64(len(head)))
	}
	typ, reply, err := readOptReply(io.MultiReader(bytes.NewReader(head), h.conn), optMemory)
	switch {
	case err != nil:
		return err
	case typ&repError != 0 && file == nil:
		return nil // whatever the reason, there is another way
	case typ != repAck || len(reply) != 0:
		return violated("malformed answer to %s", optMemory)
	case file == nil:
		return nil // it does not pass through what stands between, which copies bytes
	}
	h.memory, err = openShared(file)
	return err
}

// drop closes the connection in the handshake, or after it, without a word.
func (h *haggle) drop() {
	_ = h.raw.Close()
	h.memory.close()
	h.memory = nil
}

// offerMemory answers optMemory.
func (n *session) offerMemory(data []byte) error {
	socket, ok := n.conn.(*net.UnixConn)
	switch {
	case !ok || !memoryPossible:
		return n.answer(optMemory, repErrUnsup, nil)
	case len(data) != 0 || !n.structured || n.memory != nil:
		return n.answer(optMemory, repErrInvalid, nil)
	}
	m, file, err := newShared()
	if err != nil {
		n.server.log().Warn("share memory with an nbd client", "error", err)
		return n.answer(optMemory, repErrPlatform, nil)
	}
	defer file.Close()
	n.memory = m
	return sendFile(socket, appendOptReply(nil, optMemory, repAck, nil), file)
}

// receivePlace reads where the client wants what it reads.
func (n *session) receivePlace(w *work) error {
	var b [placeHeaderSize]byte
	if _, err := io.ReadFull(n.in, b[:]); err != nil {
		return unexpected(err)
	}
	at := binary.BigEndian.Uint32(b[:])
	switch {
	case w.err != nil:
	case w.length > placeSize || at > memorySize-w.length:
		w.err = refuse(EINVAL, "read of %d bytes to place %d", w.length, at)
	default:
		w.place = n.memory.bytes[at:][:w.length:w.length]
	}
	return nil
}

// readPlaced reads into the memory, and says so.
func (n *session) readPlaced(w *work) error {
	if len(w.place) == 0 {
		n.chunk(w, chunkNone, true, nil, nil)
		return nil
	}
	if err := n.fetch(w.place, int64(w.offset)); err != nil {
		return err
	}
	typ := chunkPlaced
	if isZero(w.place) {
		typ = chunkHole
	}
	b := binary.BigEndian.AppendUint64(nil, w.offset)
	n.chunk(w, typ, true, binary.BigEndian.AppendUint32(b, w.length), nil)
	return nil
}

// choose gives a read a place, if it fits into one, and waits until one is free:
// that takes less than the way through the socket.
func (l *link) choose(r *request) error {
	if l.memory == nil || r.command != cmdRead || r.length > placeSize {
		return nil
	}
	select {
	case r.place = <-l.places:
		r.command = cmdReadPlaced
		return nil
	case <-l.dead:
		return l.broken()
	}
}

// vacate gives a request's place back.
func (l *link) vacate(r *request) {
	if r.command == cmdReadPlaced {
		l.places <- r.place // has room for every place there is
	}
}

// placed takes what the server has put into the memory.
func (l *link) placed(r *request, length uint32) error {
	if length != 12 {
		return violated("chunk of %d bytes about the memory", length)
	}
	h, err := l.take(12)
	if err != nil {
		return err
	}
	off := binary.BigEndian.Uint64(h)
	part, err := r.part(off, binary.BigEndian.Uint32(h[8:]))
	if err != nil {
		return err
	}
	copy(part, l.memory.bytes[uint64(r.place)+off-r.offset:])
	l.tally.read.Add(int64(len(part)))
	return nil
}

// placeHeaderSize is what follows the header of a cmdReadPlaced.
const placeHeaderSize = 4

func memoryError(err error) error { return fmt.Errorf("nbd memory: %w", err) }
