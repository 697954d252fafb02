package point

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// FanOut is the ids in a page of every map that is written today. Readers take
// the fan-out from the manifest. DESIGN.md has the figures that chose it.
const FanOut = 128

// Limits that a decoder enforces.
const (
	MaxFanOut = 1024
	MaxLevel  = 15
)

var pageMagic = [4]byte{'H', 'F', 'p', 'g'}

const pageHeader = 8

// Page is one node of a disk's map. At level 0 its ids are those of chunks, in
// disk order; above, those of the pages one level lower. The zero id stands for
// zeroes all the way down. A page whose ids are all zero does not exist: its
// parent holds the zero id.
type Page struct {
	Level int
	IDs   []chunk.ID // exactly the fan-out
}

// PageID names an encoded page: BLAKE3 of its bytes, without a key, in the
// namespace of chunk.KindPage.
func PageID(encoded []byte) chunk.ID { return blake3.Sum256(encoded) }

// Append appends the page's bytes to dst, the only encoding there is: magic
// "HFpg", format 1, level, fan-out (2, little-endian), one bit per entry that is
// not zero (entry i is bit i%8 of byte i/8), then those ids in order.
func (p Page) Append(dst []byte) []byte {
	dst = append(dst, pageMagic[:]...)
	dst = append(dst, chunk.Format, byte(p.Level))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(p.IDs)))
	bits := len(dst)
	dst = append(dst, make([]byte, (len(p.IDs)+7)/8)...)
	for i, id := range p.IDs {
		if !id.IsZero() {
			dst[bits+i/8] |= 1 << (i % 8)
			dst = append(dst, id[:]...)
		}
	}
	return dst
}

// IsZero reports whether every id is zero.
func (p Page) IsZero() bool {
	for _, id := range p.IDs {
		if !id.IsZero() {
			return false
		}
	}
	return true
}

// ParsePage decodes a page. It accepts the one encoding that Append produces
// and nothing else, so that a content has one id.
func ParsePage(b []byte) (Page, error) {
	bad := func(what string) (Page, error) {
		return Page{}, fmt.Errorf("map page: %s: %w", what, chunk.ErrDamaged)
	}
	if len(b) < pageHeader || [4]byte(b[:4]) != pageMagic {
		return bad("no magic")
	}
	if b[4] != chunk.Format {
		return Page{}, chunk.UnknownFormat("map page", b[4])
	}
	level, fanOut := int(b[5]), int(binary.LittleEndian.Uint16(b[6:]))
	if level > MaxLevel || fanOut < 2 || fanOut > MaxFanOut {
		return bad(fmt.Sprintf("level %d, fan-out %d", level, fanOut))
	}
	width := (fanOut + 7) / 8
	if len(b) < pageHeader+width {
		return bad("cut")
	}
	bitmap, ids := b[pageHeader:pageHeader+width], b[pageHeader+width:]
	if fanOut%8 != 0 && bitmap[width-1]>>(fanOut%8) != 0 {
		return bad("bits beyond the fan-out")
	}
	p := Page{Level: level, IDs: make([]chunk.ID, fanOut)}
	found := false
	for i := range p.IDs {
		if bitmap[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		if len(ids) < len(chunk.ID{}) {
			return bad("cut")
		}
		p.IDs[i], ids, found = chunk.ID(ids[:32]), ids[32:], true
		if p.IDs[i].IsZero() {
			return bad("zero id stored")
		}
	}
	if len(ids) != 0 || !found {
		return bad("trailing bytes, or empty")
	}
	return p, nil
}

// Geometry is the shape of a disk's map.
type Geometry struct {
	SizeBytes int64 // of the disk
	ChunkSize int64 // of every chunk but the last
	FanOut    int
}

// Validate reports a geometry that no disk of ours has.
func (g Geometry) Validate() error {
	switch {
	case g.SizeBytes < 0 || g.SizeBytes > 1<<56:
		return fmt.Errorf("disk size %d is out of bounds", g.SizeBytes)
	case g.ChunkSize < 4096 || g.ChunkSize > chunk.MaxSize || g.ChunkSize&(g.ChunkSize-1) != 0:
		return fmt.Errorf("chunk size %d is not a power of two from 4096 to %d", g.ChunkSize, chunk.MaxSize)
	case g.FanOut < 2 || g.FanOut > MaxFanOut:
		return fmt.Errorf("fan-out %d is not from 2 to %d", g.FanOut, MaxFanOut)
	case g.RootLevel() > MaxLevel:
		return fmt.Errorf("a fan-out of %d needs more than %d levels for %d bytes", g.FanOut, MaxLevel, g.SizeBytes)
	}
	return nil
}

// Chunks is how many chunks the disk has.
func (g Geometry) Chunks() int64 { return (g.SizeBytes + g.ChunkSize - 1) / g.ChunkSize }

// ChunkLength is the bytes of the chunk with this index.
func (g Geometry) ChunkLength(index int64) int {
	return int(min(g.ChunkSize, g.SizeBytes-index*g.ChunkSize))
}

// RootLevel is the level of the root page: the lowest whose one page covers all
// chunks.
func (g Geometry) RootLevel() int {
	level, covered := 0, int64(g.FanOut)
	for covered < g.Chunks() {
		level++
		covered *= int64(g.FanOut)
	}
	return level
}

// span is how many chunks one entry of a page at this level covers.
func (g Geometry) span(level int) int64 {
	span := int64(1)
	for range level {
		span *= int64(g.FanOut)
	}
	return span
}
