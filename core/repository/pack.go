package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

// PackID names a pack, a UUIDv7 made by the server that wrote it.
type PackID [16]byte

// NewPackID makes a pack id; ids made later sort later.
func NewPackID() PackID { return PackID(uuid.Must(uuid.NewV7())) }

// String is the id as a UUID.
func (p PackID) String() string { return uuid.UUID(p).String() }

// ParsePackID decodes the text of a UUID.
func ParsePackID(s string) (PackID, error) {
	id, err := uuid.Parse(s)
	if err != nil || id.String() != s {
		return PackID{}, fmt.Errorf("parse pack id %.80q: not a UUID", s)
	}
	return PackID(id), nil
}

// PackKind tells packs of data from packs of map pages, which lie apart so that
// listing, rebuilding and collecting never read data.
type PackKind = chunk.Kind

// Sizes of a pack's parts, and bounds that a decoder enforces.
const (
	packHeaderSize = 32
	entrySize      = 72
	trailerSize    = 40
	maxEntries     = 1 << 20
	maxPack        = 1 << 30
)

var (
	packMagic    = [4]byte{'H', 'F', 'p', 'k'}
	trailerMagic = [4]byte{'H', 'F', 'p', 'e'}
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// Entry is a footer's line about one record of the pack.
type Entry struct {
	ID          chunk.ID
	Offset      int64  // of the record in the pack
	Length      uint32 // of the whole record
	Checksum    uint32 // the record's
	PlainLength uint32
	KeyNumber   uint32
	Session     chunk.SessionID
}

func entryOf(r chunk.Record, offset int64) Entry {
	return Entry{
		ID: r.ID, Offset: offset, Length: uint32(r.Size()), Checksum: r.Checksum,
		PlainLength: r.PlainLength, KeyNumber: r.KeyNumber, Session: r.Session,
	}
}

// describes reports whether a record is the one that the entry is about.
func (e Entry) describes(r chunk.Record) bool { return e == entryOf(r, e.Offset) }

// appendPackHeader appends a pack's first bytes. Layout, numbers little-endian:
//
//	 0  4  magic "HFpk"
//	 4  1  format, 1
//	 5  1  kind of the records: 1 data, 2 map pages
//	 6  2  zero
//	 8 16  pack id
//	24  4  zero
//	28  4  CRC-32C of bytes 0-27
func appendPackHeader(dst []byte, kind PackKind, id PackID) []byte {
	start := len(dst)
	dst = append(dst, packMagic[:]...)
	dst = append(dst, chunk.Format, byte(kind), 0, 0)
	dst = append(dst, id[:]...)
	dst = append(dst, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func parsePackHeader(b []byte) (PackKind, PackID, error) {
	bad := func(what string) (PackKind, PackID, error) {
		return 0, PackID{}, fmt.Errorf("pack header: %s: %w", what, chunk.ErrDamaged)
	}
	switch {
	case len(b) < packHeaderSize:
		return bad("cut")
	case [4]byte(b) != packMagic:
		return bad("no magic")
	case binary.LittleEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli):
		return bad("checksum")
	case b[4] != chunk.Format:
		return 0, PackID{}, chunk.UnknownFormat("pack", b[4])
	case b[6] != 0 || b[7] != 0 || [4]byte(b[24:]) != [4]byte{}:
		return bad("reserved bytes set")
	}
	kind := PackKind(b[5])
	if kind != chunk.KindData && kind != chunk.KindPage {
		return bad(fmt.Sprintf("kind %d", kind))
	}
	return kind, PackID(b[8:24]), nil
}

// appendFooter appends the entries, in the order of their records, and the
// trailer of a pack whose records end at offset. Layout of an entry:
//
//	 0 32  id
//	32  8  offset of the record
//	40  4  length of the record
//	44  4  the record's checksum
//	48  4  plaintext length
//	52  4  key number
//	56 16  session
//
// and of the trailer, the pack's last bytes:
//
//	 0  8  offset of the first entry
//	 8  4  number of entries
//	12  4  CRC-32C of the entries
//	16 16  pack id
//	32  4  CRC-32C of bytes 0-31
//	36  4  magic "HFpe"
func appendFooter(dst []byte, id PackID, offset int64, entries []Entry) []byte {
	start := len(dst)
	for _, e := range entries {
		dst = append(dst, e.ID[:]...)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Offset))
		dst = binary.LittleEndian.AppendUint32(dst, e.Length)
		dst = binary.LittleEndian.AppendUint32(dst, e.Checksum)
		dst = binary.LittleEndian.AppendUint32(dst, e.PlainLength)
		dst = binary.LittleEndian.AppendUint32(dst, e.KeyNumber)
		dst = append(dst, e.Session[:]...)
	}
	sum := crc32.Checksum(dst[start:], castagnoli)
	trailer := len(dst)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(offset))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(entries)))
	dst = binary.LittleEndian.AppendUint32(dst, sum)
	dst = append(dst, id[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[trailer:], castagnoli))
	return append(dst, trailerMagic[:]...)
}

// trailer is what a pack's last bytes say.
type trailer struct {
	id     PackID
	offset int64 // of the entries
	count  int
	sum    uint32
}

// footerSize is the bytes of entries and trailer.
func (t trailer) footerSize() int64 { return int64(t.count)*entrySize + trailerSize }

// parseTrailer decodes the last trailerSize bytes of a pack of a known size.
func parseTrailer(b []byte, packSize int64) (trailer, error) {
	bad := func(what string) (trailer, error) {
		return trailer{}, fmt.Errorf("pack trailer: %s: %w", what, chunk.ErrDamaged)
	}
	switch {
	case len(b) != trailerSize || packSize > maxPack:
		return bad("size")
	case [4]byte(b[36:]) != trailerMagic:
		return bad("no magic")
	case binary.LittleEndian.Uint32(b[32:]) != crc32.Checksum(b[:32], castagnoli):
		return bad("checksum")
	}
	t := trailer{
		id:     PackID(b[16:32]),
		offset: int64(binary.LittleEndian.Uint64(b)),
		count:  int(binary.LittleEndian.Uint32(b[8:])),
		sum:    binary.LittleEndian.Uint32(b[12:]),
	}
	if t.count > maxEntries || t.offset < packHeaderSize || t.offset != packSize-t.footerSize() {
		return bad("footer is not where it says")
	}
	return t, nil
}

// parseEntries decodes a footer's entries, which cover the records without gap.
func (t trailer) parseEntries(b []byte) ([]Entry, error) {
	bad := func(what string) ([]Entry, error) {
		return nil, fmt.Errorf("footer of pack %s: %s: %w", t.id, what, chunk.ErrDamaged)
	}
	if len(b) != t.count*entrySize || crc32.Checksum(b, castagnoli) != t.sum {
		return bad("checksum")
	}
	entries, next := make([]Entry, t.count), int64(packHeaderSize)
	for i := range entries {
		e := b[i*entrySize:]
		entries[i] = Entry{
			ID:          chunk.ID(e[:32]),
			Offset:      int64(binary.LittleEndian.Uint64(e[32:])),
			Length:      binary.LittleEndian.Uint32(e[40:]),
			Checksum:    binary.LittleEndian.Uint32(e[44:]),
			PlainLength: binary.LittleEndian.Uint32(e[48:]),
			KeyNumber:   binary.LittleEndian.Uint32(e[52:]),
			Session:     chunk.SessionID(e[56:72]),
		}
		if length := entries[i].Length; entries[i].Offset != next || length <= chunk.HeaderSize || length > chunk.HeaderSize+chunk.MaxBody {
			return bad("entries do not cover the records")
		}
		next += int64(entries[i].Length)
	}
	if next != t.offset {
		return bad("entries do not cover the records")
	}
	return entries, nil
}

// ParseFooter decodes the footer of a pack of packSize bytes from its last
// bytes. If tail is too short, need says how many are wanted.
func ParseFooter(tail []byte, packSize int64) (id PackID, entries []Entry, need int64, err error) {
	if int64(len(tail)) < min(packSize, trailerSize) || packSize < packHeaderSize+trailerSize {
		return PackID{}, nil, trailerSize, fmt.Errorf("pack of %d bytes: %w", packSize, chunk.ErrDamaged)
	}
	t, err := parseTrailer(tail[len(tail)-trailerSize:], packSize)
	if err != nil {
		return PackID{}, nil, 0, err
	}
	if need := t.footerSize(); need > int64(len(tail)) {
		return t.id, nil, need, nil
	}
	tail = tail[int64(len(tail))-t.footerSize():]
	entries, err = t.parseEntries(tail[:len(tail)-trailerSize])
	return t.id, entries, 0, err
}

// footerGuess is how much of a pack's end is read at once: the footer of a pack
// of 64 MiB with whole chunks has 20 to 40 KiB.
const footerGuess = 64 << 10

// readFooter reads and checks a pack's footer.
func readFooter(ctx context.Context, blobs blob.Store, p packObject) ([]Entry, error) {
	for size := min(p.size, footerGuess); ; {
		tail := make([]byte, size)
		if err := blobs.ReadAt(ctx, p.name, tail, p.size-size); err != nil {
			return nil, fmt.Errorf("read footer of pack %s: %w", p.id, err)
		}
		id, entries, need, err := ParseFooter(tail, p.size)
		switch {
		case err != nil:
			return nil, fmt.Errorf("pack %s: %w", p.id, err)
		case id != p.id:
			return nil, fmt.Errorf("pack %s holds pack %s: %w", p.id, id, chunk.ErrDamaged)
		case need == 0:
			return entries, nil
		}
		size = need
	}
}

// scanPack finds a pack's sound records without its footer, reading all of it.
// Where a record is damaged the scan looks for the next that is sound.
func scanPack(ctx context.Context, blobs blob.Store, p packObject) ([]Entry, error) {
	var entries []Entry
	err := eachRecord(ctx, blobs, p, nil, func(e Entry, r chunk.Record, damage error) error {
		if damage == nil && len(entries) < maxEntries {
			entries = append(entries, e)
		}
		return nil
	})
	return entries, err
}

// window is how much of a pack is read at once when all of it is.
const window = 4 << 20

// eachRecord reads a whole pack and calls visit for each record, in order. With
// a footer, records are taken where it says; without, they are found by their
// form. A record that is not what was written is passed with its damage and
// without content.
func eachRecord(ctx context.Context, blobs blob.Store, p packObject, footer []Entry, visit func(Entry, chunk.Record, error) error) error {
	if footer == nil {
		return searchRecords(ctx, blobs, p, visit)
	}
	var buf []byte
	for first := 0; first < len(footer); {
		last, start := first, footer[first].Offset
		for last < len(footer) && footer[last].Offset+int64(footer[last].Length)-start <= max(window, int64(footer[first].Length)) {
			last++
		}
		end := footer[last-1].Offset + int64(footer[last-1].Length)
		buf = slices.Grow(buf[:0], int(end-start))[:end-start]
		if err := blobs.ReadAt(ctx, p.name, buf, start); err != nil {
			return fmt.Errorf("read pack %s: %w", p.id, err)
		}
		for _, e := range footer[first:last] {
			r, err := parseAt(buf[e.Offset-start:], e)
			if err := visit(e, r, err); err != nil {
				return err
			}
		}
		first = last
	}
	return nil
}

// parseAt decodes the record that an entry is about.
func parseAt(b []byte, e Entry) (chunk.Record, error) {
	r, rest, err := chunk.ParseRecord(b[:e.Length:e.Length])
	if err != nil {
		return chunk.Record{}, err
	}
	if len(rest) != 0 || !e.describes(r) {
		return chunk.Record{}, fmt.Errorf("record %s is not the one that the footer names: %w", e.ID, chunk.ErrDamaged)
	}
	return r, nil
}

func searchRecords(ctx context.Context, blobs blob.Store, p packObject, visit func(Entry, chunk.Record, error) error) error {
	buf := make([]byte, window)
	for offset := int64(packHeaderSize); offset < p.size; {
		n := min(int64(len(buf)), p.size-offset)
		if err := blobs.ReadAt(ctx, p.name, buf[:n], offset); err != nil {
			return fmt.Errorf("read pack %s: %w", p.id, err)
		}
		used := int64(0)
		for used < n {
			r, rest, err := chunk.ParseRecord(buf[used:n])
			var cut *chunk.NeedError
			if errors.As(err, &cut) && offset+n < p.size && used > 0 {
				break // the rest of it is in the next window
			}
			if err != nil {
				used++ // not a record: look further
				continue
			}
			if err := visit(entryOf(r, offset+used), r, nil); err != nil {
				return err
			}
			used = n - int64(len(rest))
		}
		offset += used
	}
	return nil
}
