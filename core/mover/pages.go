package mover

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// Pages reads the pages of maps from a repository. Requests that fail for a
// moment are repeated.
func Pages(r Reader, retry Retry) point.PageSource { return pageReader{r, retry} }

type pageReader struct {
	reader Reader
	retry  Retry
}

func (p pageReader) Pages(ctx context.Context, ids []chunk.ID) ([][]byte, error) {
	pages := make([][]byte, 0, len(ids))
	err := p.retry.Do(ctx, func() error {
		return p.reader.Read(ctx, chunk.KindPage, ids[len(pages):], func(r chunk.Record) error {
			if len(pages) == len(ids) || r.Kind != chunk.KindPage || r.ID != ids[len(pages)] {
				return fmt.Errorf("read map pages: got record %s, which was not asked for: %w", r.ID, chunk.ErrDamaged)
			}
			pages = append(pages, bytes.Clone(r.Body))
			return nil
		})
	})
	if err == nil && len(pages) != len(ids) {
		err = fmt.Errorf("read map pages: asked for %d, got %d: %w", len(ids), len(pages), chunk.ErrDamaged)
	}
	return pages, err
}

// pageCacheBytes bounds the pages that wait between the look-up of base ids and
// the writing of the new map.
const pageCacheBytes = 8 << 20

// pageCache keeps the pages used last, so that the builder of a map finds those
// that were fetched, many at a time, for the look-up just before. It belongs to
// one Send and is safe for its goroutines.
type pageCache struct {
	source point.PageSource

	mutex sync.Mutex // guards the fields below
	size  int
	byID  map[chunk.ID]*list.Element
	used  *list.List // of *cachedPage, the latest in front
}

type cachedPage struct {
	id   chunk.ID
	page []byte
}

func newPageCache(source point.PageSource) *pageCache {
	return &pageCache{source: source, byID: make(map[chunk.ID]*list.Element), used: list.New()}
}

func (c *pageCache) Pages(ctx context.Context, ids []chunk.ID) ([][]byte, error) {
	pages := make([][]byte, len(ids))
	var absent []chunk.ID
	var places []int
	c.mutex.Lock()
	for i, id := range ids {
		if e := c.byID[id]; e != nil {
			c.used.MoveToFront(e)
			pages[i] = e.Value.(*cachedPage).page
			continue
		}
		absent, places = append(absent, id), append(places, i)
	}
	c.mutex.Unlock()
	if len(absent) == 0 {
		return pages, nil
	}
	fetched, err := c.source.Pages(ctx, absent)
	if err != nil {
		return nil, err
	}
	if len(fetched) != len(absent) {
		return nil, fmt.Errorf("read map pages: asked for %d, got %d: %w", len(absent), len(fetched), chunk.ErrDamaged)
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for i, page := range fetched {
		pages[places[i]] = page
		c.keep(absent[i], page)
	}
	return pages, nil
}

func (c *pageCache) keep(id chunk.ID, page []byte) {
	if c.byID[id] != nil {
		return
	}
	c.byID[id] = c.used.PushFront(&cachedPage{id: id, page: page})
	c.size += len(page)
	for c.size > pageCacheBytes {
		last := c.used.Back()
		old := c.used.Remove(last).(*cachedPage)
		delete(c.byID, old.id)
		c.size -= len(old.page)
	}
}
