package audit

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Hash is a SHA-256.
type Hash [sha256.Size]byte

// String is the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads what String wrote.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if hex.DecodedLen(len(s)) != len(h) {
		return Hash{}, fmt.Errorf("parse audit hash: %d characters, want %d", len(s), 2*len(h))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return Hash{}, fmt.Errorf("parse audit hash: %w", err)
	}
	return h, nil
}

// Sum is the hash that the entry must have: over a version line, the previous
// hash, the numbers, and every text preceded by its length, so that no two
// entries share an input.
func (e Entry) Sum() Hash {
	h := sha256.New()
	h.Write([]byte("holdfast audit 1\n"))
	h.Write(e.Previous[:])
	var n [8]byte
	number := func(v int64) {
		binary.BigEndian.PutUint64(n[:], uint64(v))
		h.Write(n[:])
	}
	number(e.Sequence)
	number(e.Time.UnixMicro())
	for _, s := range []string{string(e.Chain), e.Actor, e.Name, e.Address, e.Request, e.Reason, e.Action, e.Target, string(e.Detail)} {
		number(int64(len(s)))
		h.Write([]byte(s))
	}
	return Hash(h.Sum(nil))
}

// BrokenError says where a chain does not hold.
type BrokenError struct {
	Chain    tenant.ID
	Sequence int64 // the first entry that does not fit
	Reason   string
}

// Error names the place.
func (e *BrokenError) Error() string {
	chain := string(e.Chain)
	if chain == "" {
		chain = "of the provider"
	}
	return fmt.Sprintf("audit chain %s broken at entry %d: %s", chain, e.Sequence, e.Reason)
}

// pageSize is how many entries Verify holds in memory.
const pageSize = 1000

// Verify reads a chain from its first entry and returns its head, or a
// *BrokenError. Compare the head with an exported one: a chain that was cut at
// its end is whole in itself.
func Verify(ctx context.Context, s Store, chain tenant.ID) (Head, error) {
	head := Head{Chain: chain}
	for {
		page, err := s.List(ctx, Query{Chain: chain, After: head.Sequence, Limit: pageSize})
		if err != nil {
			return head, fmt.Errorf("read audit chain: %w", err)
		}
		for _, e := range page {
			if head, err = head.Next(e); err != nil {
				return head, err
			}
		}
		if len(page) < pageSize {
			return head, nil
		}
	}
}

// Next checks that e follows h and returns the new head.
func (h Head) Next(e Entry) (Head, error) {
	broken := func(reason string) (Head, error) {
		return h, &BrokenError{Chain: h.Chain, Sequence: h.Sequence + 1, Reason: reason}
	}
	switch {
	case e.Chain != h.Chain:
		return broken("the entry belongs to another chain")
	case e.Sequence != h.Sequence+1:
		return broken(fmt.Sprintf("the next entry has number %d", e.Sequence))
	case e.Previous != h.Hash:
		return broken("it does not continue the entry before it")
	case e.Sum() != e.Hash:
		return broken("its content does not match its hash")
	}
	return Head{Chain: h.Chain, Sequence: e.Sequence, Hash: e.Hash}, nil
}

// cut bounds a text without splitting a character; invalid UTF-8 is replaced,
// because one of the databases refuses it.
func cut(s string, most int) string {
	valid := make([]rune, 0, min(len(s), most))
	for _, r := range s {
		if len(valid) == most {
			break
		}
		if r == 0 {
			r = utf8.RuneError
		}
		valid = append(valid, r)
	}
	return string(valid)
}
