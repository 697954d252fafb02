package main

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// words are what texts and rows are made of.
var words = strings.Fields(`account address agent archive balance batch branch bucket buffer cable cache carrier
channel client cluster column commit contract counter customer delivery device disk domain driver engine entry event
field filter folder gateway group header history image index input invoice journal kernel label ledger letter library
limit list machine manager market master matrix member message meter minute mirror module monitor network number object
office order output package page panel partner path payment period person plan player point policy price process product
profile project provider queue quota rate record region remote report request reserve result role route sample schedule
segment sensor series server session shelf signal site snapshot socket source state station status storage stream street
subject supply switch system table target task tenant terminal ticket token total tower track traffic unit update user
value vendor version volume warehouse window worker writer zone`)

func (m *maker) word() string { return words[m.random.IntN(len(words))] }

// noise is what films and archives look like: it does not compress.
func (m *maker) noise(dst []byte) {
	for ; len(dst) >= 8; dst = dst[8:] {
		binary.LittleEndian.PutUint64(dst, m.random.Uint64())
	}
	for i := range dst {
		dst[i] = byte(m.random.Uint32())
	}
}

// dbPage is the page of a database, in bytes.
const dbPage = 8 * kib

// pages fills dst with pages of a database: a header, rows of numbers, words and
// keys, free space at the end.
func (m *maker) pages(dst []byte, id uint64) {
	for ; len(dst) > 0; id++ {
		page := dst[:min(dbPage, len(dst))]
		dst = dst[len(page):]
		clear(page)
		binary.LittleEndian.PutUint64(page, 0x1_0000_0000+m.random.Uint64N(1<<28))
		binary.LittleEndian.PutUint64(page[8:], id)
		const longestRow = 96
		end := len(page) - longestRow - m.random.IntN(2000)
		row := id * 80
		for at := 24; at < end; row++ {
			binary.LittleEndian.PutUint64(page[at:], row)
			binary.LittleEndian.PutUint32(page[at+8:], 1_700_000_000+m.random.Uint32N(10_000_000))
			binary.LittleEndian.PutUint32(page[at+12:], m.random.Uint32N(100_000))
			at += 16
			for range 4 {
				at += copy(page[at:], m.word()) + 1
			}
			binary.LittleEndian.PutUint64(page[at:], m.random.Uint64())
			binary.LittleEndian.PutUint64(page[at+8:], m.random.Uint64())
			at += 16
		}
	}
}

// log fills dst with the lines of a busy service.
func (m *maker) log(dst []byte) {
	at := 1_700_000_000 + m.random.IntN(1_000_000)
	levels := []string{"INFO", "INFO", "INFO", "DEBUG", "WARN"}
	statuses := []int{200, 200, 200, 201, 304, 404, 500}
	for len(dst) > 0 {
		at += m.random.IntN(3)
		line := fmt.Sprintf("%d node-%02d %s[%d]: %s id=%08x user=%s-%d GET /v2/%s/%d status=%d took=%dms bytes=%d\n",
			at, m.random.IntN(20), m.word(), 1000+m.random.IntN(50), levels[m.random.IntN(len(levels))], m.random.Uint32(),
			m.word(), m.random.IntN(500), m.word(), m.random.IntN(10_000),
			statuses[m.random.IntN(len(statuses))], m.random.IntN(900), m.random.IntN(1<<16))
		dst = dst[copy(dst, line):]
	}
}
