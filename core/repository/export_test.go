package repository

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// GoldenPack is the header of a pack with a known id, and its footer if it holds
// one record.
func GoldenPack(t *testing.T, record []byte) (header, footer []byte) {
	t.Helper()
	r, rest, err := chunk.ParseRecord(record)
	if err != nil || len(rest) != 0 {
		t.Fatal(err)
	}
	id := PackID{0x01, 0x90, 0xa0, 15: 0x0e}
	header = appendPackHeader(nil, chunk.KindPage, id)
	end := int64(len(header) + len(record))
	return header, appendFooter(nil, id, end, []Entry{entryOf(r, int64(len(header)))})
}

// CopyIndex is an index in memory with what another one holds now: a backup of
// it that may be put in its place later.
func CopyIndex(x *Index) (_ *Index, err error) {
	out, err := OpenIndex("copy", IndexOptions{CacheBytes: 1 << 20, InMemory: true})
	if err != nil {
		return nil, err
	}
	it, err := x.db.NewIter(nil)
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	b := out.db.NewBatch()
	for it.First(); it.Valid() && err == nil; it.Next() {
		err = b.Set(it.Key(), it.Value(), nil)
	}
	if err = errors.Join(err, it.Error(), it.Close(), b.Commit(pebble.NoSync), b.Close()); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

// EraseIndex makes an index forget a repository.
func EraseIndex(x *Index, id string) error {
	space, err := x.space(id)
	if err != nil {
		return err
	}
	return space.erase()
}

// Write writes a value to the index of a repository, as a batch of its own, and
// reports what is there.
func (x *Index) Write(repository string, n uint32, value []byte) error {
	s, err := x.space(repository)
	if err != nil {
		return err
	}
	b := s.batch()
	b.set(s.key(familySound, binary.BigEndian.AppendUint32(nil, n)), value)
	return b.apply()
}

// Value reads what Write wrote.
func (x *Index) Value(repository string, n uint32) ([]byte, error) {
	s, err := x.space(repository)
	if err != nil {
		return nil, err
	}
	value, _, err := s.get(s.key(familySound, binary.BigEndian.AppendUint32(nil, n)))
	return value, err
}

// Stuck reports whether a write waits for room.
func (x *Index) Stuck() bool { return x.stuck() }
