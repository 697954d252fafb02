package mover

import (
	"iter"
	"maps"
	"math/bits"
	"slices"
)

// set is a set of chunk indexes: one bit each, in blocks that exist only where
// something is in them. 1 TiB of scattered changes takes 512 KiB.
type set struct {
	blocks map[int64]*[setWords]uint64
	count  int64
}

const (
	setWords = 512
	setBlock = setWords * 64
)

func newSet() *set { return &set{blocks: make(map[int64]*[setWords]uint64)} }

// add enters the indexes in [from, to).
func (s *set) add(from, to int64) {
	for i := from; i < to; i++ {
		block := s.blocks[i/setBlock]
		if block == nil {
			block = new([setWords]uint64)
			s.blocks[i/setBlock] = block
		}
		word, bit := &block[i%setBlock/64], uint64(1)<<(i%64)
		if *word&bit == 0 {
			*word |= bit
			s.count++
		}
	}
}

func (s *set) has(i int64) bool {
	block := s.blocks[i/setBlock]
	return block != nil && block[i%setBlock/64]&(1<<(i%64)) != 0
}

// runs lists the set as ascending ranges [first, end), each as long as it gets.
func (s *set) runs() iter.Seq2[int64, int64] {
	return func(yield func(first, end int64) bool) {
		first, end := int64(-1), int64(-1)
		for _, at := range slices.Sorted(maps.Keys(s.blocks)) {
			for w, word := range s.blocks[at] {
				for word != 0 {
					i := at*setBlock + int64(w)*64 + int64(bits.TrailingZeros64(word))
					word &= word - 1
					if i == end {
						end++
						continue
					}
					if first >= 0 && !yield(first, end) {
						return
					}
					first, end = i, i+1
				}
			}
		}
		if first >= 0 {
			yield(first, end)
		}
	}
}
