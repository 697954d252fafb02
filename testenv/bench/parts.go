package main

import (
	"context"
	"fmt"
)

// allParts are the tables that bench can make. The first is the default, all of
// them are "large".
var allParts = []part{
	{"pair", (*bench).comparePair},
	{"line", (*bench).overLines},
	{"guest", (*bench).guestPart},
	{"big", (*bench).big},
	{"sparse", (*bench).sparse},
	{"fifty", (*bench).fifty},
	{"aged", (*bench).aged},
}

// comparePair is the comparison that most targets speak of.
func (b *bench) comparePair(ctx context.Context) error {
	return b.compare(ctx, compare{
		title:   fmt.Sprintf("%d GiB, %.1f %% changed", b.gib, 100*b.changed),
		recipe:  recipe{sizeBytes: b.gib << 30, changed: b.changed},
		peers:   b.peers,
		ops:     b.ops,
		repeats: b.repeats(3),
		targets: pairTargets,
	})
}
