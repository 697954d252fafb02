package repository

import (
	"testing"

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
