package point_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// model is the ids of a disk as a plain map without zero ids.
type model map[int64]chunk.ID

func (m model) set(i int64, id chunk.ID) {
	if delete(m, i); !id.IsZero() {
		m[i] = id
	}
}

// drawID draws from few ids, the zero ID among them, so that pages meet again.
func drawID(t *rapid.T) (id chunk.ID) {
	id[0] = byte(rapid.IntRange(0, 5).Draw(t, "id"))
	return id
}

func drawGeometry(t *rapid.T) point.Geometry {
	return point.Geometry{
		SizeBytes: rapid.Int64Range(1, 700*4096).Draw(t, "size"),
		ChunkSize: 4096,
		FanOut:    rapid.IntRange(2, 9).Draw(t, "fan-out"),
	}
}

// drawChange draws ascending indexes with ids.
func drawChange(t *rapid.T, chunks int64) ([]int64, map[int64]chunk.ID) {
	change := make(map[int64]chunk.ID)
	for range rapid.IntRange(0, 12).Draw(t, "runs") {
		first := rapid.Int64Range(0, chunks-1).Draw(t, "first")
		for i := first; i < min(chunks, first+rapid.Int64Range(1, 40).Draw(t, "length")); i++ {
			change[i] = drawID(t)
		}
	}
	return slices.Sorted(maps.Keys(change)), change
}

func walked(t *rapid.T, tree point.Tree, from, to int64) model {
	got, last := make(model), int64(-1)
	if err := tree.Walk(context.Background(), from, to, func(i int64, id chunk.ID) error {
		if i <= last || id.IsZero() {
			t.Fatalf("Walk visits %d with id %s after %d", i, id, last)
		}
		got[i], last = id, i
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestTreeIsAMap compares trees that grow out of each other with plain maps:
// whatever was set, and only that, is found by every way of reading, and equal
// contents have equal roots however they came about.
func TestTreeIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		g := drawGeometry(t)
		chunks := g.Chunks()
		store := &pages{byID: make(map[chunk.ID][]byte)}
		want, root := make(model), chunk.ID{}
		for range rapid.IntRange(1, 4).Draw(t, "points") {
			indexes, change := drawChange(t, chunks)
			tree := point.Tree{Geometry: g, Root: root, Pages: store}
			var err error
			root, err = build(tree, store, func(set func(int64, chunk.ID)) {
				for _, i := range indexes {
					set(i, change[i])
					want.set(i, change[i])
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		tree := point.Tree{Geometry: g, Root: root, Pages: store}
		if root.IsZero() != (len(want) == 0) {
			t.Fatalf("root %s of a disk with %d chunks", root, len(want))
		}
		if got := walked(t, tree, 0, chunks); !maps.Equal(got, want) {
			t.Fatalf("Walk finds %v, want %v", got, want)
		}
		from, to := rapid.Int64Range(0, chunks).Draw(t, "from"), rapid.Int64Range(0, chunks+3).Draw(t, "to")
		part := maps.Clone(want)
		maps.DeleteFunc(part, func(i int64, _ chunk.ID) bool { return i < from || i >= to })
		if got := walked(t, tree, from, to); !maps.Equal(got, part) {
			t.Fatalf("Walk of [%d, %d) finds %v, want %v", from, to, got, part)
		}
		cursor := tree.Cursor()
		for range 50 {
			i := rapid.Int64Range(-2, chunks+2).Draw(t, "index")
			if id, err := cursor.At(ctx, i); err != nil || id != want[i] {
				t.Fatalf("Cursor.At(%d) = %s, %v, want %s", i, id, err, want[i])
			}
		}
		chosen := slices.Sorted(maps.Keys(drawSet(t, chunks)))
		next := 0
		if err := tree.Select(ctx, chosen, func(i int, id chunk.ID) error {
			if i != next || id != want[chosen[i]] {
				t.Fatalf("Select visits %d with %s, want %d with %s", i, id, next, want[chosen[i]])
			}
			next++
			return nil
		}); err != nil || next != len(chosen) {
			t.Fatalf("Select visits %d of %d: %v", next, len(chosen), err)
		}
		again, err := build(point.Tree{Geometry: g}, store, func(set func(int64, chunk.ID)) {
			for _, i := range slices.Sorted(maps.Keys(want)) {
				set(i, want[i])
			}
		})
		if err != nil || again != root {
			t.Fatalf("built at once the root is %s, built in steps %s: %v", again, root, err)
		}
	})
}

func drawSet(t *rapid.T, chunks int64) map[int64]struct{} {
	chosen := make(map[int64]struct{})
	for _, i := range rapid.SliceOfN(rapid.Int64Range(0, chunks+5), 0, 60).Draw(t, "chosen") {
		chosen[i] = struct{}{}
	}
	return chosen
}

// fullTree is a tree of n chunks with random ids.
func fullTree(t *testing.T, n int64, fanOut int) (point.Tree, *pages) {
	t.Helper()
	store := &pages{byID: make(map[chunk.ID][]byte)}
	tree := point.Tree{Geometry: point.Geometry{SizeBytes: n * 4096, ChunkSize: 4096, FanOut: fanOut}, Pages: store}
	r := rand.New(rand.NewPCG(1, 1))
	var err error
	if tree.Root, err = build(tree, store, func(set func(int64, chunk.ID)) {
		for i := range n {
			set(i, randomID(r))
		}
	}); err != nil {
		t.Fatal(err)
	}
	store.reset()
	return tree, store
}

func TestIncrementTouchesOnlyItsPaths(t *testing.T) {
	tree, store := fullTree(t, 8*8*8*8, 8) // four levels
	before := len(store.byID)
	root, err := build(tree, store, func(set func(int64, chunk.ID)) {
		set(0, chunk.ID{1})
		set(1, chunk.ID{2})    // the same leaf
		set(4000, chunk.ID{3}) // another path below the same root
	})
	if err != nil || root == tree.Root {
		t.Fatal(root, err)
	}
	if wrote := len(store.byID) - before; wrote != 7 || store.requests != 7 {
		t.Errorf("wrote %d and fetched %d pages, want 7: two paths of four with one root", wrote, store.requests)
	}
}

func TestSettingWhatIsThereWritesNothing(t *testing.T) {
	tree, store := fullTree(t, 1000, 16)
	root, err := build(tree, store, func(set func(int64, chunk.ID)) {
		for i := int64(0); i < 1000; i += 7 {
			id, err := tree.Cursor().At(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			set(i, id)
		}
	})
	if err != nil || root != tree.Root || store.written != 0 {
		t.Errorf("root %s, want %s; wrote %d bytes; %v", root, tree.Root, store.written, err)
	}
}

func TestZeroedDiskHasNoRoot(t *testing.T) {
	tree, store := fullTree(t, 300, 4)
	root, err := build(tree, store, func(set func(int64, chunk.ID)) {
		for i := range int64(300) {
			set(i, chunk.ID{})
		}
	})
	if err != nil || !root.IsZero() || store.written != 0 {
		t.Errorf("root %s, wrote %d bytes, %v", root, store.written, err)
	}
}

func TestBuilderRefusesDisorder(t *testing.T) {
	b, err := point.NewBuilder(point.Tree{Geometry: point.Geometry{SizeBytes: 10 * 4096, ChunkSize: 4096, FanOut: 4}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Set(t.Context(), 5, chunk.ID{}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int64{5, 4, 10, -1} {
		if err := b.Set(t.Context(), i, chunk.ID{1}); err == nil {
			t.Errorf("Set(%d) after 5 of 10 succeeds", i)
		}
	}
}

func TestReadersAskForPagesInBatches(t *testing.T) {
	tree, store := fullTree(t, 128*128, 128)
	if err := tree.Walk(t.Context(), 0, tree.Chunks(), func(int64, chunk.ID) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if store.largest > point.MaxPageRequest || store.calls != 1+2 {
		t.Errorf("Walk: %d requests of up to %d pages for a root and 128 leaves", store.calls, store.largest)
	}
	store.reset()
	var scattered []int64
	for i := int64(0); i < tree.Chunks(); i += 200 {
		scattered = append(scattered, i)
	}
	if err := tree.Select(t.Context(), scattered, func(int, chunk.ID) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if store.largest > point.MaxPageRequest || store.calls != 1+2 {
		t.Errorf("Select: %d requests of up to %d pages for %d leaves", store.calls, store.largest, len(scattered))
	}
}

// TestForeignPageIsRefused puts sound pages where they do not belong: every
// reader checks the hash, the level and the fan-out.
func TestForeignPageIsRefused(t *testing.T) {
	tree, store := fullTree(t, 8*8*8, 8)
	_, theirs := fullTree(t, 10, 8)
	root, err := point.ParsePage(store.byID[tree.Root])
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(id chunk.ID){
		"flipped": func(id chunk.ID) {
			page := slices.Clone(store.byID[id])
			page[len(page)-1] ^= 1
			store.byID[id] = page
		},
		"another page": func(id chunk.ID) {
			for _, page := range theirs.byID {
				store.byID[id] = page
			}
		},
		"cut": func(id chunk.ID) { store.byID[id] = store.byID[id][:20] },
	} {
		t.Run(name, func(t *testing.T) {
			id := root.IDs[3]
			sound := store.byID[id]
			defer func() { store.byID[id] = sound }()
			spoil(id)
			at := int64(3*64 + 5)
			if _, err := tree.Cursor().At(t.Context(), at); !errors.Is(err, chunk.ErrDamaged) {
				t.Errorf("Cursor.At = %v", err)
			}
			if err := tree.Walk(t.Context(), 0, 512, func(int64, chunk.ID) error { return nil }); !errors.Is(err, chunk.ErrDamaged) {
				t.Errorf("Walk = %v", err)
			}
			if err := tree.Select(t.Context(), []int64{1, at}, func(int, chunk.ID) error { return nil }); !errors.Is(err, chunk.ErrDamaged) {
				t.Errorf("Select = %v", err)
			}
			if _, err := build(tree, store, func(set func(int64, chunk.ID)) { set(at, chunk.ID{1}) }); !errors.Is(err, chunk.ErrDamaged) {
				t.Errorf("Builder = %v", err)
			}
			visited, hidden := 0, [][2]int64(nil)
			err := tree.WalkAround(t.Context(), 10, 512, func(int64, chunk.ID) error { visited++; return nil },
				func(first, end int64, err error) error {
					hidden = append(hidden, [2]int64{first, end})
					return nil
				})
			if err != nil || visited != 502-64 || !slices.Equal(hidden, [][2]int64{{192, 256}}) {
				t.Errorf("WalkAround visits %d and hides %v: %v", visited, hidden, err)
			}
		})
	}
	// A page of the right hash at the wrong level: the root named as a leaf's parent.
	leaf := root.IDs[0]
	shallow := tree
	shallow.Root = leaf
	if err := shallow.Walk(t.Context(), 0, 512, func(int64, chunk.ID) error { return nil }); !errors.Is(err, chunk.ErrDamaged) {
		t.Errorf("Walk from a page of another level = %v", err)
	}
}

func TestGeometry(t *testing.T) {
	for _, bad := range []point.Geometry{
		{SizeBytes: -1, ChunkSize: 4096, FanOut: 128},
		{SizeBytes: 1<<56 + 1, ChunkSize: 4096, FanOut: 128},
		{SizeBytes: 1, ChunkSize: 4095, FanOut: 128},
		{SizeBytes: 1, ChunkSize: 2 << 20, FanOut: 128},
		{SizeBytes: 1, ChunkSize: 4096, FanOut: 1},
		{SizeBytes: 1, ChunkSize: 4096, FanOut: 1025},
		{SizeBytes: 1 << 50, ChunkSize: 4096, FanOut: 2}, // deeper than a page can say
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	g := point.Geometry{SizeBytes: 5*chunk.Size + 1, ChunkSize: chunk.Size, FanOut: 2}
	if err := g.Validate(); err != nil {
		t.Fatal(err)
	}
	if g.Chunks() != 6 || g.ChunkLength(4) != chunk.Size || g.ChunkLength(5) != 1 || g.RootLevel() != 2 {
		t.Errorf("%d chunks, the last of %d, root at level %d", g.Chunks(), g.ChunkLength(5), g.RootLevel())
	}
	largest := point.Geometry{SizeBytes: 1 << 56, ChunkSize: 4096, FanOut: point.FanOut}
	if err := largest.Validate(); err != nil {
		t.Errorf("the largest disk: %v", err)
	}
}
