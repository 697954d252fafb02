package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Magic numbers.
const (
	magicServer     uint64 = 0x4e42444d41474943 // NBDMAGIC
	magicOption     uint64 = 0x49484156454f5054 // IHAVEOPT
	magicOldstyle   uint64 = 0x00420281861253
	magicOptReply   uint64 = 0x0003e889045565a9
	magicRequest    uint32 = 0x25609513
	magicSimple     uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags of the server, which the client answers with the same bits.
const (
	handshakeFixed    uint16 = 1 << 0
	handshakeNoZeroes uint16 = 1 << 1
)

// option is what a client asks during the handshake.
type option uint32

const (
	optExportName option = 1
	optAbort      option = 2
	optList       option = 3
	optStartTLS   option = 5
	optInfo       option = 6
	optGo         option = 7
	optStructured option = 8
	optListMeta   option = 9
	optSetMeta    option = 10
	optMemory     option = 0x48460001 // ours
)

func (o option) String() string {
	switch o {
	case optExportName:
		return "EXPORT_NAME"
	case optAbort:
		return "ABORT"
	case optList:
		return "LIST"
	case optStartTLS:
		return "STARTTLS"
	case optInfo:
		return "INFO"
	case optGo:
		return "GO"
	case optStructured:
		return "STRUCTURED_REPLY"
	case optListMeta:
		return "LIST_META_CONTEXT"
	case optSetMeta:
		return "SET_META_CONTEXT"
	case optMemory:
		return "MEMORY"
	}
	return fmt.Sprintf("option %d", uint32(o))
}

// optReply is the type of the server's answer to an option.
type optReply uint32

const (
	repAck    optReply = 1
	repServer optReply = 2
	repInfo   optReply = 3
	repMeta   optReply = 4

	repError        optReply = 1 << 31
	repErrUnsup     optReply = repError + 1
	repErrPolicy    optReply = repError + 2
	repErrInvalid   optReply = repError + 3
	repErrPlatform  optReply = repError + 4
	repErrTLS       optReply = repError + 5
	repErrUnknown   optReply = repError + 6
	repErrShutdown  optReply = repError + 7
	repErrBlockSize optReply = repError + 8
	repErrTooBig    optReply = repError + 9
)

// Kinds of information in an INFO reply.
const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

// Transmission flags of an export.
const (
	flagHasFlags    uint16 = 1 << 0
	flagReadOnly    uint16 = 1 << 1
	flagFlush       uint16 = 1 << 2
	flagFUA         uint16 = 1 << 3
	flagTrim        uint16 = 1 << 5
	flagWriteZeroes uint16 = 1 << 6
	flagDF          uint16 = 1 << 7
	flagMultiConn   uint16 = 1 << 8
	flagCache       uint16 = 1 << 10
)

// command is the type of a request.
type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisconnect  command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
	cmdReadPlaced  command = 0x4846 // ours, with optMemory
)

func (c command) String() string {
	switch c {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdDisconnect:
		return "disconnect"
	case cmdFlush:
		return "flush"
	case cmdTrim:
		return "trim"
	case cmdCache:
		return "cache"
	case cmdWriteZeroes:
		return "write zeroes"
	case cmdBlockStatus:
		return "block status"
	case cmdReadPlaced:
		return "placed read"
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// Flags of a request.
const (
	cmdFlagFUA    uint16 = 1 << 0
	cmdFlagNoHole uint16 = 1 << 1
	cmdFlagDF     uint16 = 1 << 2
	cmdFlagReqOne uint16 = 1 << 3
)

// Types and flags of structured reply chunks.
const (
	chunkDone uint16 = 1 << 0 // flag: the last chunk of its reply

	chunkNone        uint16 = 0
	chunkData        uint16 = 1
	chunkHole        uint16 = 2
	chunkBlockStatus uint16 = 5
	chunkPlaced      uint16 = 0x4846 // ours, with optMemory
	chunkErrorBit    uint16 = 1 << 15
	chunkError       uint16 = chunkErrorBit + 1
	chunkErrorOffset uint16 = chunkErrorBit + 2
)

// Flags of base:allocation and of the dirty bitmaps, as Status.Flags has them.
const (
	StateHole  uint32 = 1 << 0 // base:allocation: not allocated
	StateZero  uint32 = 1 << 1 // base:allocation: reads as zeroes
	StateDirty uint32 = 1 << 0 // qemu:dirty-bitmap: changed
)

// Meta contexts.
const (
	ContextAllocation  = "base:allocation"
	ContextDirtyPrefix = "qemu:dirty-bitmap:"
)

// Bounds on what a peer may send.
const (
	// maxString is the protocol's own bound on names and messages.
	maxString = 4096
	// maxOptionData holds an export name and as many meta context queries as
	// any client asks; a server's option replies are far smaller.
	maxOptionData = 64 << 10
	// maxPayload is the largest read or write. 32 MiB is what the protocol
	// tells both sides to assume where nothing else was agreed.
	maxPayload = 32 << 20
	// maxOptions is how many options a client may send before it has to enter
	// transmission. libnbd asks about ten.
	maxOptions = 256
	// maxOptionReplies bounds the replies to one option, which is how many
	// exports a server may list.
	maxOptionReplies = 16384
	// maxQueries bounds the meta contexts in one option.
	maxQueries = 1024
	// maxStatusExtents bounds one BLOCK_STATUS chunk that is received: nbdkit
	// sends up to 2^20 extents, QEMU 2^17.
	maxStatusExtents = 1 << 20
	// defaultPreferredBlock is the protocol's default.
	defaultPreferredBlock = 4096
	// maxMinBlock is the protocol's bound on the minimum block size.
	maxMinBlock = 64 << 10
)

const (
	optionHeaderSize   = 16
	optReplyHeaderSize = 20
	requestHeaderSize  = 28
	simpleHeaderSize   = 16
	chunkHeaderSize    = 20
)

// ErrProtocol is wrapped by errors about a peer that broke the protocol.
var ErrProtocol = errors.New("nbd protocol violated")

func violated(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// requestHeader is a request without its payload.
type requestHeader struct {
	flags   uint16
	command command
	cookie  uint64
	offset  uint64
	length  uint32
}

func (h requestHeader) put(b *[requestHeaderSize]byte) {
	binary.BigEndian.PutUint32(b[0:], magicRequest)
	binary.BigEndian.PutUint16(b[4:], h.flags)
	binary.BigEndian.PutUint16(b[6:], uint16(h.command))
	binary.BigEndian.PutUint64(b[8:], h.cookie)
	binary.BigEndian.PutUint64(b[16:], h.offset)
	binary.BigEndian.PutUint32(b[24:], h.length)
}

func parseRequest(b *[requestHeaderSize]byte) (requestHeader, error) {
	if m := binary.BigEndian.Uint32(b[0:]); m != magicRequest {
		return requestHeader{}, violated("request magic %#x", m)
	}
	return requestHeader{
		flags:   binary.BigEndian.Uint16(b[4:]),
		command: command(binary.BigEndian.Uint16(b[6:])),
		cookie:  binary.BigEndian.Uint64(b[8:]),
		offset:  binary.BigEndian.Uint64(b[16:]),
		length:  binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// appendOption appends a whole option.
func appendOption(b []byte, opt option, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendOptReply appends a whole reply to an option.
func appendOptReply(b []byte, opt option, typ optReply, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, uint32(typ))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendString appends a string preceded by its 32-bit length.
func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// fields takes option data apart. The first field that does not fit sets bad,
// and everything after it is zero.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) bytes(n uint64) []byte {
	if f.bad || n > uint64(len(f.rest)) {
		f.bad = true
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) uint16() uint16 {
	if b := f.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (f *fields) uint32() uint32 {
	if b := f.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (f *fields) uint64() uint64 {
	if b := f.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// text takes a string that is preceded by its 32-bit length.
func (f *fields) text() string {
	n := f.uint32()
	if n > maxString {
		f.bad = true
		return ""
	}
	return string(f.bytes(uint64(n)))
}

// done reports whether the data ended exactly here, without a fault.
func (f *fields) done() bool { return !f.bad && len(f.rest) == 0 }

// infoRequest is the data of OPT_GO and OPT_INFO.
type infoRequest struct {
	export string
	infos  []uint16
}

func (r infoRequest) encode() []byte {
	b := appendString(nil, r.export)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.infos)))
	for _, i := range r.infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

func parseInfoRequest(data []byte) (infoRequest, error) {
	f := fields{rest: data}
	r := infoRequest{export: f.text()}
	n := f.uint16()
	if int(n)*2 != len(f.rest) {
		f.bad = true
	}
	for range n {
		if f.bad {
			break
		}
		r.infos = append(r.infos, f.uint16())
	}
	if !f.done() {
		return infoRequest{}, violated("malformed export request")
	}
	return r, nil
}

// metaRequest is the data of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT.
type metaRequest struct {
	export  string
	queries []string
}

func (r metaRequest) encode() []byte {
	b := appendString(nil, r.export)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.queries)))
	for _, q := range r.queries {
		b = appendString(b, q)
	}
	return b
}

func parseMetaRequest(data []byte) (metaRequest, error) {
	f := fields{rest: data}
	r := metaRequest{export: f.text()}
	n := f.uint32()
	if n > maxQueries {
		return metaRequest{}, violated("%d meta context queries", n)
	}
	for range n {
		if f.bad {
			break
		}
		r.queries = append(r.queries, f.text())
	}
	if !f.done() {
		return metaRequest{}, violated("malformed meta context request")
	}
	return r, nil
}

// readOptReply reads one reply to an option.
func readOptReply(r io.Reader, want option) (optReply, []byte, error) {
	var h [optReplyHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	if m := binary.BigEndian.Uint64(h[0:]); m != magicOptReply {
		return 0, nil, violated("option reply magic %#x", m)
	}
	if o := option(binary.BigEndian.Uint32(h[8:])); o != want {
		return 0, nil, violated("reply to %s instead of %s", o, want)
	}
	typ := optReply(binary.BigEndian.Uint32(h[12:]))
	n := binary.BigEndian.Uint32(h[16:])
	if n > maxOptionData {
		return 0, nil, violated("%s reply of %d bytes", want, n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, unexpected(err)
	}
	return typ, data, nil
}

// unexpected turns an end of the stream inside a message into
// io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if err == io.EOF { //nolint:errorlint // a reader's own; an error that wraps it has said what ended
		return io.ErrUnexpectedEOF
	}
	return err
}
