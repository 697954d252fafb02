package repository

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// Erase deletes everything that a cloud repository has: its objects, its spool
// and its part of the index. It cannot be undone. The caller holds the claim,
// has closed the repository, and has made sure that it was to be erased.
// Objects under a lock are left, and named in the error. It may be repeated.
func Erase(ctx context.Context, c Config) error {
	space, err := c.Index.space(c.ID)
	if err != nil {
		return err
	}
	var failures []error
	for object, err := range c.Blobs.List(ctx, c.ID+"/") {
		if err != nil {
			return fmt.Errorf("erase repository %s: %w", c.ID, err)
		}
		if err := c.Blobs.Delete(ctx, object.Name); err != nil && !errors.Is(err, blob.ErrNotFound) {
			failures = append(failures, fmt.Errorf("delete %s: %w", object.Name, err))
		}
		if len(failures) > maxEraseFailures {
			break
		}
	}
	if len(failures) > 0 {
		return fmt.Errorf("erase repository %s: %w", c.ID, errors.Join(failures...))
	}
	if err := os.RemoveAll(filepath.Join(c.SpoolDir, c.ID)); err != nil {
		return fmt.Errorf("erase the spool of repository %s: %w", c.ID, err)
	}
	return space.erase()
}

// maxEraseFailures bounds what one error names.
const maxEraseFailures = 20

// erase drops every key of the repository.
func (s space) erase() error {
	for _, family := range []byte{familyCopies, familyPack, familyPage, familyUsed, familyState, familyPending, familyEnded, familyNew, familySound} {
		first := s.key(family)
		after := append([]byte(nil), first...)
		for i := len(after) - 1; i >= 0; i-- {
			if after[i]++; after[i] != 0 {
				break
			}
		}
		if err := s.index.db.DeleteRange(first, after, pebble.Sync); err != nil {
			return fmt.Errorf("erase the index of repository: %w", err)
		}
	}
	return nil
}
