package point

import (
	"context"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Select calls visit for each of the indexes, which must ascend, with its place
// in the slice and its id, the zero ID included. It fetches only the pages on
// the paths to them, MaxPageRequest at a time: for scattered indexes far fewer
// round trips than a Cursor makes.
func (t Tree) Select(ctx context.Context, indexes []int64, visit func(i int, id chunk.ID) error) error {
	s := selection{tree: t, indexes: indexes, visit: visit}
	if t.Root.IsZero() {
		return s.zero(0, len(indexes))
	}
	within := s.until(0, len(indexes), t.Chunks())
	if within > 0 {
		root, err := t.fetch(ctx, t.Root, t.RootLevel())
		if err != nil {
			return err
		}
		if err := s.page(ctx, root, 0, 0, within); err != nil {
			return err
		}
	}
	return s.zero(within, len(indexes))
}

type selection struct {
	tree    Tree
	indexes []int64
	visit   func(i int, id chunk.ID) error
}

// until is the place in [from, to) of the first index that is not below limit.
func (s *selection) until(from, to int, limit int64) int {
	for from < to && s.indexes[from] < limit {
		from++
	}
	return from
}

func (s *selection) zero(from, to int) error {
	for i := from; i < to; i++ {
		if err := s.visit(i, chunk.ID{}); err != nil {
			return err
		}
	}
	return nil
}

// group is the part of a selection below one entry of a page.
type group struct {
	from, to int
	first    int64
	id       chunk.ID
}

// page visits the indexes in [from, to), all of which lie below the page.
func (s *selection) page(ctx context.Context, page Page, first int64, from, to int) error {
	span := s.tree.span(page.Level)
	if page.Level == 0 {
		for i := from; i < to; i++ {
			if err := s.visit(i, page.IDs[s.indexes[i]-first]); err != nil {
				return err
			}
		}
		return nil
	}
	for from < to {
		var groups []group
		var ids []chunk.ID
		for from < to && len(ids) < MaxPageRequest {
			entry := (s.indexes[from] - first) / span
			g := group{from: from, first: first + entry*span, id: page.IDs[entry]}
			g.to = s.until(from, to, g.first+span)
			groups, from = append(groups, g), g.to
			if !g.id.IsZero() {
				ids = append(ids, g.id)
			}
		}
		if err := s.groups(ctx, groups, ids, page.Level-1); err != nil {
			return err
		}
	}
	return nil
}

func (s *selection) groups(ctx context.Context, groups []group, ids []chunk.ID, level int) error {
	var children []Page
	if len(ids) > 0 {
		var err error
		if children, err = s.tree.fetchAll(ctx, ids, level); err != nil {
			return err
		}
	}
	for _, g := range groups {
		if g.id.IsZero() {
			if err := s.zero(g.from, g.to); err != nil {
				return err
			}
			continue
		}
		if err := s.page(ctx, children[0], g.first, g.from, g.to); err != nil {
			return err
		}
		children = children[1:]
	}
	return nil
}
