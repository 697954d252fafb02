package repository

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// Found is what lies in a store under the id of a cloud repository, by its names
// and small objects alone: nothing is opened, and nothing is written.
type Found struct {
	ID        string
	Label     Label     // zero if there is none that can be read
	ChunkSize int64     // 0 if nothing tells
	Points    int       // manifests that are neither void nor entombed; only an import judges them
	Newest    time.Time // when the newest of them was written
	Bytes     int64     // of all packs
	Objects   int       // that were counted
	Partial   bool      // the count ended at its bound, so the figures are lower ones
}

// IDs names what may be cloud repositories in a store, in their order. Only Find
// tells whether there is anything.
func IDs(ctx context.Context, blobs blob.Store) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for folder, err := range blob.Folders(ctx, blobs, "") {
			if err != nil {
				yield("", fmt.Errorf("look for repositories: %w", err))
				return
			}
			if isUUID(folder) && !yield(folder, nil) {
				return
			}
		}
	}
}

// Find looks at what lies under an id; ErrNotFound if that is nothing. It ends
// the count at a number of objects.
func Find(ctx context.Context, blobs blob.Store, id string, most int) (Found, error) {
	f := finder{blobs: blobs, most: most, found: Found{ID: id}}
	if err := f.find(ctx); err != nil {
		return f.found, fmt.Errorf("look at repository %.80s: %w", id, err)
	}
	return f.found, nil
}

type finder struct {
	blobs blob.Store
	most  int
	found Found
}

// errCounted ends a count at its bound.
var errCounted = errors.New("counted enough")

func (f *finder) find(ctx context.Context) error {
	if !isUUID(f.found.ID) {
		return fmt.Errorf("not a repository's id: %w", ErrNotFound)
	}
	for _, err := range f.blobs.List(ctx, f.found.ID+"/") { // one object is enough
		if err != nil {
			return err
		}
		f.found.Objects++
		break
	}
	if f.found.Objects == 0 {
		return ErrNotFound
	}
	f.found.Objects = 0
	var err error
	if _, f.found.Label, err = labels(ctx, f.blobs, f.found.ID); err != nil {
		return err
	}
	if err := f.format(ctx); err != nil {
		return err
	}
	if err := f.count(ctx); !errors.Is(err, errCounted) {
		return err
	}
	f.found.Partial = true
	return nil
}

// format learns the chunk size.
func (f *finder) format(ctx context.Context) error {
	b, err := blob.Read(ctx, f.blobs, f.found.ID+"/"+formatObject, maxSmall)
	if errors.Is(err, blob.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var have formatJSON
	if decodeSmall(b, &have) != nil {
		return nil // every manifest says the same
	}
	if have.Format != chunk.Format {
		return fmt.Errorf("it has format %d, this program knows %d: %w", have.Format, chunk.Format, ErrRefused)
	}
	f.found.ChunkSize = have.ChunkSize
	return nil
}

func (f *finder) count(ctx context.Context) error {
	entombed := map[point.ID]bool{}
	err := f.each(ctx, tombstoneFolder, func(object blob.Object) error {
		entombed[point.ID(strings.TrimPrefix(object.Name, f.found.ID+"/"+tombstoneFolder))] = true
		return nil
	})
	if err != nil {
		return err
	}
	// The names of a point's manifests follow each other, each before its void.
	var last point.ID
	var manifest string
	err = f.each(ctx, pointsFolder, func(object blob.Object) error {
		m, ok := parseManifestName(f.found.ID, object)
		switch {
		case !ok || entombed[m.point]:
		case m.void:
			if m.name == manifest {
				f.found.Points--
				last, manifest = "", ""
			}
		case m.point != last:
			last, manifest = m.point, m.name
			f.found.Points++
			if object.Created.After(f.found.Newest) {
				f.found.Newest = object.Created.UTC()
			}
			return f.geometry(ctx, m)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, folder := range []string{packsFolder, mapsFolder} {
		err := f.each(ctx, folder, func(object blob.Object) error {
			f.found.Bytes += object.SizeBytes
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *finder) each(ctx context.Context, folder string, visit func(blob.Object) error) error {
	for object, err := range f.blobs.List(ctx, f.found.ID+"/"+folder) {
		if err != nil {
			return err
		}
		if f.found.Objects++; f.found.Objects > f.most {
			return errCounted
		}
		if err := visit(object); err != nil {
			return err
		}
	}
	return nil
}

// geometry learns from a manifest what the format object did not tell.
func (f *finder) geometry(ctx context.Context, m manifestObject) error {
	if f.found.ChunkSize != 0 {
		return nil
	}
	b, err := blob.Read(ctx, f.blobs, m.name, point.MaxManifest)
	if errors.Is(err, blob.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if p, err := point.ParsePublic(b); err == nil {
		f.found.ChunkSize = p.ChunkSize
	}
	return nil
}
