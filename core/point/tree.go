package point

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// PageSource fetches encoded pages by id, in the order asked. It need not check
// them: readers do. At most MaxPageRequest ids are asked for at once.
type PageSource interface {
	Pages(ctx context.Context, ids []chunk.ID) ([][]byte, error)
}

// MaxPageRequest bounds the ids of one PageSource request, and with it the
// memory that a walk holds per level.
const MaxPageRequest = 64

// Tree is the map of one disk, to be read.
type Tree struct {
	Geometry
	Root  chunk.ID
	Pages PageSource
}

// fetch gets one page and checks its hash and its place.
func (t Tree) fetch(ctx context.Context, id chunk.ID, level int) (Page, error) {
	pages, err := t.fetchAll(ctx, []chunk.ID{id}, level)
	if err != nil {
		return Page{}, err
	}
	return pages[0], nil
}

func (t Tree) fetchAll(ctx context.Context, ids []chunk.ID, level int) ([]Page, error) {
	encoded, err := t.Pages.Pages(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("fetch %d map pages: %w", len(ids), err)
	}
	if len(encoded) != len(ids) {
		return nil, fmt.Errorf("fetch map pages: asked for %d, got %d", len(ids), len(encoded))
	}
	pages := make([]Page, len(ids))
	for i, b := range encoded {
		if got := PageID(b); got != ids[i] {
			return nil, fmt.Errorf("map page %s: content has id %s: %w", ids[i], got, chunk.ErrDamaged)
		}
		page, err := ParsePage(b)
		if err != nil {
			return nil, err
		}
		if page.Level != level || len(page.IDs) != t.FanOut {
			return nil, fmt.Errorf("map page %s: level %d and fan-out %d, want %d and %d: %w",
				ids[i], page.Level, len(page.IDs), level, t.FanOut, chunk.ErrDamaged)
		}
		pages[i] = page
	}
	return pages, nil
}

// Walk calls visit for every chunk with an index in [from, to) that is not
// zero, in ascending order. Pages are fetched MaxPageRequest at a time.
func (t Tree) Walk(ctx context.Context, from, to int64, visit func(index int64, id chunk.ID) error) error {
	return t.WalkAround(ctx, from, to, visit, nil)
}

// WalkAround is Walk that goes on where a page is damaged or absent: it tells
// bad which chunks the page hides, and ends if that returns an error.
func (t Tree) WalkAround(ctx context.Context, from, to int64, visit func(index int64, id chunk.ID) error, bad func(first, end int64, err error) error) error {
	to = min(to, t.Chunks())
	if t.Root.IsZero() || from >= to {
		return nil
	}
	w := walker{tree: t, from: from, to: to, visit: visit, bad: bad}
	return w.children(ctx, t.RootLevel(), []int64{0}, []chunk.ID{t.Root})
}

type walker struct {
	tree     Tree
	from, to int64
	visit    func(index int64, id chunk.ID) error
	bad      func(first, end int64, err error) error
}

func (w walker) page(ctx context.Context, page Page, first int64) error {
	span := w.tree.span(page.Level)
	var starts []int64
	var ids []chunk.ID
	for i, id := range page.IDs {
		start := first + int64(i)*span
		if id.IsZero() || start >= w.to || start+span <= w.from {
			continue
		}
		starts, ids = append(starts, start), append(ids, id)
	}
	if page.Level == 0 {
		for i, id := range ids {
			if err := w.visit(starts[i], id); err != nil {
				return err
			}
		}
		return nil
	}
	for len(ids) > 0 {
		n := min(len(ids), MaxPageRequest)
		if err := w.children(ctx, page.Level-1, starts[:n], ids[:n]); err != nil {
			return err
		}
		starts, ids = starts[n:], ids[n:]
	}
	return nil
}

// children visits what lies below some pages of one level.
func (w walker) children(ctx context.Context, level int, starts []int64, ids []chunk.ID) error {
	pages, err := w.tree.fetchAll(ctx, ids, level)
	if err != nil && (w.bad == nil || !errors.Is(err, chunk.ErrDamaged) && !errors.Is(err, chunk.ErrAbsent)) {
		return err
	}
	for i := range ids {
		var page Page
		if err == nil {
			page = pages[i]
		} else if single, err := w.tree.fetch(ctx, ids[i], level); err == nil {
			page = single
		} else if err := w.lost(starts[i], level, err); err != nil {
			return err
		} else {
			continue
		}
		if err := w.page(ctx, page, starts[i]); err != nil {
			return err
		}
	}
	return nil
}

func (w walker) lost(first int64, level int, err error) error {
	if !errors.Is(err, chunk.ErrDamaged) && !errors.Is(err, chunk.ErrAbsent) {
		return err
	}
	end := first + w.tree.span(level+1)
	return w.bad(max(first, w.from), min(end, w.to), err)
}

// Cursor looks chunk ids up by index, keeping the path of pages to the last
// one, so that ascending look-ups fetch each page once. It belongs to one
// goroutine.
type Cursor struct {
	tree  Tree
	level int
	path  []node // by level, 0 the leaf
}

type node struct {
	first int64 // index of the first chunk that the page covers
	valid bool
	zero  bool
	page  Page
}

// Cursor returns a cursor over the tree.
func (t Tree) Cursor() *Cursor {
	level := t.RootLevel()
	return &Cursor{tree: t, level: level, path: make([]node, level+1)}
}

// At is the id of a chunk; the zero ID beyond the end.
func (c *Cursor) At(ctx context.Context, index int64) (chunk.ID, error) {
	if index < 0 || index >= c.tree.Chunks() {
		return chunk.ID{}, nil
	}
	id := c.tree.Root
	for level := c.level; level >= 0; level-- {
		span := c.tree.span(level)
		n, width := &c.path[level], span*int64(c.tree.FanOut)
		if first := index / width * width; !n.valid || n.first != first {
			*n = node{first: first, zero: id.IsZero()}
			if !n.zero {
				page, err := c.tree.fetch(ctx, id, level)
				if err != nil {
					return chunk.ID{}, err
				}
				n.page = page
			}
			n.valid = true
		}
		if n.zero {
			return chunk.ID{}, nil
		}
		id = n.page.IDs[(index-n.first)/span]
	}
	return id, nil
}

// Builder writes the tree of a disk in one ascending pass. Chunks that are not
// set keep the id that they have in the base tree, or are zero without one;
// pages that do not change are neither fetched (but on the paths to those that
// do) nor written again. Memory is one page per level.
type Builder struct {
	base  Tree
	level int
	path  []open
	next  int64
	write func(ctx context.Context, id chunk.ID, page []byte) error
	buf   []byte
}

type open struct {
	node
	changed bool
	baseID  chunk.ID
}

// NewBuilder starts a tree. Only Geometry of base is required; with a Root, the
// base must have the same geometry. write is called for each new page, children
// before parents, with bytes that are valid during the call.
func NewBuilder(base Tree, write func(ctx context.Context, id chunk.ID, page []byte) error) (*Builder, error) {
	if err := base.Validate(); err != nil {
		return nil, err
	}
	level := base.RootLevel()
	return &Builder{base: base, level: level, path: make([]open, level+1), write: write}, nil
}

// Set gives a chunk its id; the zero ID says that it is zero. Indexes ascend.
func (b *Builder) Set(ctx context.Context, index int64, id chunk.ID) error {
	if index < b.next || index >= b.base.Chunks() {
		return fmt.Errorf("set chunk %d of %d after chunk %d", index, b.base.Chunks(), b.next-1)
	}
	b.next = index + 1
	if err := b.descend(ctx, index); err != nil {
		return err
	}
	leaf := &b.path[0]
	if entry := &leaf.page.IDs[index-leaf.first]; *entry != id {
		*entry, leaf.changed = id, true
	}
	return nil
}

// descend opens the pages from the root to the leaf that holds index, closing
// those of an earlier path.
func (b *Builder) descend(ctx context.Context, index int64) error {
	for level := 0; level <= b.level; level++ {
		width := b.base.span(level + 1)
		if n := &b.path[level]; n.valid && n.first != index/width*width {
			if err := b.close(ctx, level); err != nil {
				return err
			}
		}
	}
	id := b.base.Root
	for level := b.level; level >= 0; level-- {
		n, width := &b.path[level], b.base.span(level+1)
		if !n.valid {
			if err := b.open(ctx, n, id, level, index/width*width); err != nil {
				return err
			}
		}
		// The entry still holds the base's id unless the child was closed
		// before, which ascending order rules out.
		id = n.page.IDs[(index-n.first)/b.base.span(level)]
	}
	return nil
}

func (b *Builder) open(ctx context.Context, n *open, id chunk.ID, level int, first int64) error {
	page := Page{Level: level, IDs: make([]chunk.ID, b.base.FanOut)}
	if !id.IsZero() {
		fetched, err := b.base.fetch(ctx, id, level)
		if err != nil {
			return err
		}
		page.IDs = slices.Clone(fetched.IDs)
	}
	*n = open{node: node{first: first, valid: true, page: page}, baseID: id}
	return nil
}

// close encodes the page at a level, writes it if it is new, and enters its id
// in its parent, which is open.
func (b *Builder) close(ctx context.Context, level int) error {
	n := &b.path[level]
	n.valid = false
	if !n.changed {
		return nil
	}
	id, err := b.encode(ctx, n.page)
	if err != nil {
		return err
	}
	if level == b.level {
		b.base.Root = id
		return nil
	}
	parent := &b.path[level+1]
	entry := &parent.page.IDs[(n.first-parent.first)/b.base.span(level+1)]
	if *entry != id {
		*entry, parent.changed = id, true
	}
	return nil
}

func (b *Builder) encode(ctx context.Context, page Page) (chunk.ID, error) {
	if page.IsZero() {
		return chunk.ID{}, nil
	}
	b.buf = page.Append(b.buf[:0])
	id := PageID(b.buf)
	if err := b.write(ctx, id, b.buf); err != nil {
		return chunk.ID{}, fmt.Errorf("write map page %s: %w", id, err)
	}
	return id, nil
}

// Finish closes the tree and returns its root, the zero ID for a disk of
// zeroes. The builder cannot be used afterwards.
func (b *Builder) Finish(ctx context.Context) (chunk.ID, error) {
	for level := range b.path {
		if b.path[level].valid {
			if err := b.close(ctx, level); err != nil {
				return chunk.ID{}, err
			}
		}
	}
	b.next = b.base.Chunks()
	return b.base.Root, nil
}
