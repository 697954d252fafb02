package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Format is the number of the record format. A decoder refuses any other.
const Format = 1

// Codec says how a body was compressed before it was sealed.
type Codec uint8

// The codecs of format 1.
const (
	CodecStored Codec = 0
	CodecZstd   Codec = 1
)

const (
	// HeaderSize is the bytes of a record before its body.
	HeaderSize = 72
	// Overhead is what sealing adds to the compressed plaintext: nonce and tag.
	Overhead = nonceSize + tagSize
	// MaxBody bounds the body length that a decoder accepts.
	MaxBody = MaxSize + Overhead

	nonceSize = 12
	tagSize   = 16
)

var recordMagic = [4]byte{'H', 'F', 'r', 'c'}

// ErrDamaged is wrapped by every error that means: these bytes are not what was
// written.
var ErrDamaged = errors.New("damaged")

// ErrAbsent is wrapped by the error of a read that asked for an id which the
// repository does not hold.
var ErrAbsent = errors.New("absent")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Record is one framed chunk or page. Layout, all numbers little-endian:
//
//	 0  4  magic "HFrc"
//	 4  1  format, 1
//	 5  1  kind
//	 6  1  codec
//	 7  1  zero
//	 8  4  plaintext length, bytes
//	12  4  body length, bytes
//	16  4  key number (0 for pages)
//	20  4  CRC-32C of bytes 0-19 and of everything from 24 on
//	24 16  session
//	40 32  id
//	72     body: nonce (12), ciphertext, tag (16) for data; the page for pages
type Record struct {
	Kind        Kind
	Codec       Codec
	PlainLength uint32
	KeyNumber   uint32
	Checksum    uint32
	Session     SessionID
	ID          ID
	Body        []byte
}

// Size is the bytes of the whole encoded record.
func (r Record) Size() int { return HeaderSize + len(r.Body) }

// ParseRecord decodes the record at the start of b and returns what follows
// it. The record's Body aliases b. The checksum is verified: an error wraps
// ErrDamaged, or says that b is too short with io.ErrUnexpectedEOF semantics
// through NeedError.
func ParseRecord(b []byte) (r Record, rest []byte, err error) {
	r, size, err := ParseHeader(b)
	if err != nil {
		return Record{}, nil, err
	}
	if len(b) < size {
		return Record{}, nil, &NeedError{Have: len(b), Need: size}
	}
	if sum := checksum(b[:size]); sum != r.Checksum {
		return Record{}, nil, fmt.Errorf("record %s: checksum %08x, computed %08x: %w", r.ID, r.Checksum, sum, ErrDamaged)
	}
	r.Body = b[HeaderSize:size:size]
	return r, b[size:], nil
}

// UnknownFormat is the error of a decoder that meets another format number than
// its own. It is an ErrDamaged: in a repository of this format, whose format
// object was read before anything else, the number is a byte that changed.
func UnknownFormat(what string, format byte) error {
	return fmt.Errorf("%s has format %d, this program reads format %d: %w", what, format, Format, ErrDamaged)
}

// ParseHeader decodes only the header at the start of b, without the checksum,
// and returns the size of the whole record. Body stays nil.
func ParseHeader(b []byte) (r Record, size int, err error) {
	if len(b) < HeaderSize {
		return Record{}, 0, &NeedError{Have: len(b), Need: HeaderSize}
	}
	if [4]byte(b[:4]) != recordMagic {
		return Record{}, 0, fmt.Errorf("record magic % x: %w", b[:4], ErrDamaged)
	}
	if b[4] != Format {
		return Record{}, 0, UnknownFormat("record", b[4])
	}
	r = Record{
		Kind:        Kind(b[5]),
		Codec:       Codec(b[6]),
		PlainLength: binary.LittleEndian.Uint32(b[8:]),
		KeyNumber:   binary.LittleEndian.Uint32(b[16:]),
		Checksum:    binary.LittleEndian.Uint32(b[20:]),
		Session:     SessionID(b[24:40]),
		ID:          ID(b[40:72]),
	}
	body := binary.LittleEndian.Uint32(b[12:])
	if err := r.check(body, b[7]); err != nil {
		return Record{}, 0, err
	}
	return r, HeaderSize + int(body), nil
}

func (r Record) check(body uint32, reserved byte) error {
	bad := func(what string) error { return fmt.Errorf("record %s: %s: %w", r.ID, what, ErrDamaged) }
	switch {
	case reserved != 0:
		return bad("reserved byte set")
	case r.ID.IsZero():
		return bad("zero id")
	case r.PlainLength == 0 || r.PlainLength > MaxSize:
		return bad(fmt.Sprintf("plaintext length %d", r.PlainLength))
	case r.Codec > CodecZstd:
		return bad(fmt.Sprintf("codec %d", r.Codec))
	}
	switch r.Kind {
	case KindData:
		if body <= Overhead || body > r.PlainLength+Overhead {
			return bad(fmt.Sprintf("body length %d for %d bytes", body, r.PlainLength))
		}
		if r.Codec == CodecStored && body != r.PlainLength+Overhead {
			return bad("stored body of another length")
		}
		if r.KeyNumber == 0 {
			return bad("no key number")
		}
	case KindPage:
		if r.Codec != CodecStored || r.KeyNumber != 0 || body != r.PlainLength {
			return bad("page with codec, key or another length")
		}
	default:
		return bad(fmt.Sprintf("kind %d", r.Kind))
	}
	return nil
}

// appendHeader appends r's header, with the checksum still zero.
func appendHeader(dst []byte, r Record, body int) []byte {
	dst = append(dst, recordMagic[:]...)
	dst = append(dst, Format, byte(r.Kind), byte(r.Codec), 0)
	dst = binary.LittleEndian.AppendUint32(dst, r.PlainLength)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(body))
	dst = binary.LittleEndian.AppendUint32(dst, r.KeyNumber)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	dst = append(dst, r.Session[:]...)
	return append(dst, r.ID[:]...)
}

// Append appends the record's bytes as ParseRecord read them, checksum
// included: a record is passed on verbatim, damage and all.
func (r Record) Append(dst []byte) []byte {
	return append(r.AppendHeader(dst), r.Body...)
}

// AppendHeader appends what precedes the body in the record's bytes, so that a
// record is passed on without its body being copied.
func (r Record) AppendHeader(dst []byte) []byte {
	start := len(dst)
	dst = appendHeader(dst, r, len(r.Body))
	binary.LittleEndian.PutUint32(dst[start+20:], r.Checksum)
	return dst
}

// AppendPage appends the record of a map page, whose bytes point.Page encodes.
func AppendPage(dst []byte, session SessionID, id ID, page []byte) []byte {
	start := len(dst)
	dst = appendHeader(dst, Record{Kind: KindPage, PlainLength: uint32(len(page)), Session: session, ID: id}, len(page))
	dst = append(dst, page...)
	setChecksum(dst[start:])
	return dst
}

func setChecksum(record []byte) {
	binary.LittleEndian.PutUint32(record[20:], checksum(record))
}

func checksum(record []byte) uint32 {
	sum := crc32.Update(0, castagnoli, record[:20])
	return crc32.Update(sum, castagnoli, record[24:])
}

// NeedError says that more bytes are needed to decode a record.
type NeedError struct{ Have, Need int }

func (e *NeedError) Error() string {
	return fmt.Sprintf("record is cut: %d of %d bytes", e.Have, e.Need)
}

// Is makes a cut record count as damaged.
func (e *NeedError) Is(target error) bool { return target == ErrDamaged }
