package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// segment is the unit of which an image is made; every segment has one kind of
// content.
const segment = 1 << 20

// mix is the make-up of a system disk, in per mille: what was measured on real
// ones of a few GiB.
var mix = []struct {
	name  string
	share int
	fill  func(dst []byte, r *rand.Rand)
}{
	{"zero", 360, func([]byte, *rand.Rand) {}},
	{"files", 330, fillText},
	{"pages", 130, fillPages},
	{"incompressible", 130, fillNoise},
	{"repeated", 50, nil}, // the first files again
}

// image is a deterministic disk: the same seed and size give the same bytes.
type image struct {
	seed uint64
	size int64
}

func (m image) segments() int64 { return m.size / segment }

// kind is the place in mix of a segment. Runs of eight share a kind, as files do.
func (m image) kind(index int64) int {
	r := rand.New(rand.NewPCG(m.seed, uint64(index/8)))
	n := r.IntN(1000)
	for k, part := range mix {
		if n -= part.share; n < 0 {
			return k
		}
	}
	return 0
}

// read fills dst, of one segment, with the segment's content; false if it is
// zero.
func (m image) read(dst []byte, index int64) bool {
	clear(dst)
	k := m.kind(index)
	switch mix[k].name {
	case "zero":
		return false
	case "repeated":
		index, k = index%64, 1
	}
	mix[k].fill(dst, rand.New(rand.NewPCG(m.seed^0x9e3779b97f4a7c15, uint64(index))))
	return true
}

// words are drawn with a skewed frequency, so that the result compresses about
// as well as programs and documents do.
func fillText(dst []byte, r *rand.Rand) {
	var words [512][]byte
	for i := range words {
		w := make([]byte, 2+r.IntN(9))
		for j := range w {
			w[j] = byte(r.Uint32())
			if i%3 != 0 {
				w[j] = 'a' + w[j]%26
			}
		}
		words[i] = w
	}
	for n := 0; n < len(dst); {
		if r.IntN(5) == 0 && n+4 <= len(dst) {
			binary.LittleEndian.PutUint32(dst[n:], r.Uint32())
			n += 4
			continue
		}
		f := r.Float64()
		n += copy(dst[n:], words[int(f*f*float64(len(words)))])
	}
}

// fillPages makes pages of 8 KiB with a header, sorted keys and free space, as a
// database has.
func fillPages(dst []byte, r *rand.Rand) {
	const page = 8 << 10
	key := r.Uint64() >> 16
	for p := 0; p+page <= len(dst); p += page {
		b := dst[p : p+page]
		copy(b, fmt.Sprintf("page %016x", key))
		for n := 32; n+48 <= page*3/4; n += 48 {
			key += uint64(r.IntN(100))
			binary.BigEndian.PutUint64(b[n:], key)
			for j := n + 8; j < n+24; j++ {
				b[j] = byte(r.Uint32())
			}
			copy(b[n+24:], "status=active  region=0")
		}
	}
}

func fillNoise(dst []byte, r *rand.Rand) {
	for n := 0; n+8 <= len(dst); n += 8 {
		binary.LittleEndian.PutUint64(dst[n:], r.Uint64())
	}
}

// change is one write of the second day.
type change struct {
	offset int64
	data   []byte
}

// changes are writes of 4 KiB blocks whose sum is share of the disk. Three
// quarters come in runs of up to 1 MiB, the rest is scattered.
func (m image) changes(share float64, apply func(change) error) error {
	const block = 4 << 10
	r := rand.New(rand.NewPCG(m.seed, 2))
	for left := int64(share * float64(m.size)); left > 0; {
		n := int64(block)
		if r.IntN(4) > 0 {
			n *= int64(1 + r.IntN(segment/block))
		}
		n = min(n, (left+block-1)/block*block)
		data := make([]byte, n)
		if r.IntN(5) == 0 {
			fillNoise(data, r)
		} else {
			fillText(data, r)
		}
		if err := apply(change{offset: r.Int64N((m.size-n)/block+1) * block, data: data}); err != nil {
			return err
		}
		left -= n
	}
	return nil
}
