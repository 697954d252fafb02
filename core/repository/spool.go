package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

// spoolPack is a pack that is being written to a file of the server. Its bytes
// are those of the pack from the first on, so after a crash every whole record
// is found again, and a finished file can be linked into a store.
//
// One goroutine at a time writes to it, under Session.writing while the pack is
// open; others may look meanwhile.
type spoolPack struct {
	path   string
	file   *os.File
	sealed bool
	behind int64 // bytes for which write-back has been started

	// doubtful: bytes of the file may not reach the disk, whatever a sync says
	// from now on, because one failed or may have failed in an earlier life. It is
	// shipped by way of a new file; see renew.
	doubtful bool

	// taken: the store has an object of the pack's name that is not this pack, or
	// is not any more. What is in the file is shipped under another name.
	taken bool

	mu         sync.Mutex // guards what follows, which the writer changes and others read
	packObject            // size is the bytes in the file
	entries    []Entry
	known      map[chunk.ID]struct{}
}

// has reports whether a record is in the file.
func (p *spoolPack) has(id chunk.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.known[id]
	return ok
}

// fileBytes is the size of the file, recordBytes what of it is records.
func (p *spoolPack) fileBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size
}

func (p *spoolPack) recordBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return sumOf(p.entries)
}

const (
	dataSuffix = ".data"
	mapSuffix  = ".map"
)

// writeBack is how many bytes are gathered before the kernel is asked to start
// writing them, so that the sync at the seal finds little left to do.
const writeBack = 8 << 20

func (r *Repository) newSpoolPack(dir string, kind PackKind) (*spoolPack, error) {
	id := NewPackID()
	suffix := dataSuffix
	if kind == chunk.KindPage {
		suffix = mapSuffix
	}
	p := &spoolPack{
		packObject: packObject{id: id, kind: kind, name: r.packName(kind, id)},
		path:       filepath.Join(dir, id.String()+suffix),
		known:      map[chunk.ID]struct{}{},
	}
	file, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make spool file: %w", full(err))
	}
	p.file = file
	if err := p.write(appendPackHeader(nil, kind, id)); err != nil {
		return nil, errors.Join(err, p.discard())
	}
	return p, nil
}

// syncFile brings a file or folder of the spool to the disk.
func (r *Repository) syncFile(f *os.File) error {
	if err := r.sync(f); err != nil {
		return fmt.Errorf("%w: %w", blob.ErrUnsynced, full(err))
	}
	return nil
}

// full makes a full disk recognisable.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", blob.ErrFull, err)
	}
	return err
}

// write appends bytes, and the records that they are. After an error the file is
// as it was before.
func (p *spoolPack) write(b []byte, records ...chunk.Record) error {
	if _, err := p.file.WriteAt(b, p.size); err != nil {
		return errors.Join(fmt.Errorf("write spool file: %w", full(err)), p.file.Truncate(p.size))
	}
	p.enter(int64(len(b)), records)
	if p.size-p.behind >= writeBack {
		startWriteBack(p.file, p.behind, p.size-p.behind)
		p.behind = p.size
	}
	return nil
}

// enter makes known what was written.
func (p *spoolPack) enter(n int64, records []chunk.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	offset := p.size
	for _, r := range records {
		p.entries = append(p.entries, entryOf(r, offset))
		p.known[r.ID] = struct{}{}
		offset += int64(r.Size())
	}
	p.size += n
}

// seal ends the pack with its footer. Sealing again does nothing.
func (p *spoolPack) seal() error {
	if p.sealed {
		return nil
	}
	if err := p.write(appendFooter(nil, p.id, p.size, p.entries)); err != nil {
		return err
	}
	p.sealed = true
	return nil
}

// fits reports whether a record may be added before the pack is full.
func (p *spoolPack) fits(size int, limit int64) bool {
	return len(p.entries) == 0 || p.size+int64(size) <= limit && len(p.entries) < maxEntries
}

// discard removes the file.
func (p *spoolPack) discard() error {
	return errors.Join(p.file.Close(), os.Remove(p.path))
}

// pages reads the map pages of the pack back.
func (p *spoolPack) pages() (map[chunk.ID][]byte, error) {
	pages := make(map[chunk.ID][]byte, len(p.entries))
	for _, e := range p.entries {
		b := make([]byte, e.Length)
		if _, err := p.file.ReadAt(b, e.Offset); err != nil {
			return nil, fmt.Errorf("read spool file: %w", err)
		}
		r, err := parseAt(b, e)
		if err != nil {
			return nil, fmt.Errorf("read spool file: %w", err)
		}
		pages[e.ID] = r.Body
	}
	return pages, nil
}

// ship brings a sealed pack into the store, and then into the index. It may be
// repeated after an error.
func (r *Repository) ship(ctx context.Context, p *spoolPack, session string) error {
	var pages map[chunk.ID][]byte
	if p.kind == chunk.KindPage {
		var err error
		if pages, err = p.pages(); err != nil {
			return err
		}
	}
	if err := r.store(ctx, p); err != nil {
		return fmt.Errorf("store pack %s: %w", p.id, err)
	}
	if session == "" { // a collection's, in which points use everything
		err := r.enterPack(p.packObject, p.entries, pages, nil)
		if err != nil {
			return err
		}
	} else if err := r.bring(ctx, p, pages, session); err != nil {
		return err
	}
	if err := p.discard(); err != nil {
		r.log.Warn("a spool file stays", "pack", p.id, "error", err) // shipped again later, which finds it done
	}
	return nil
}

// store syncs a pack into the store.
func (r *Repository) store(ctx context.Context, p *spoolPack) error {
	if err := r.syncFile(p.file); err != nil {
		p.doubtful = true
		return fmt.Errorf("sync spool file: %w", err)
	}
	err := errors.ErrUnsupported
	if adopter, ok := r.blobs.(blob.Adopter); ok {
		if err = adopter.Adopt(ctx, p.name, p.path); errors.Is(err, blob.ErrUnsynced) {
			p.doubtful = true
		}
	}
	if errors.Is(err, errors.ErrUnsupported) {
		err = r.blobs.Put(ctx, p.name, p.file, p.size)
	}
	if !errors.Is(err, blob.ErrExists) {
		return err
	}
	// Nobody else has this id: an earlier attempt came through and its answer
	// was lost.
	entries, err := readFooter(ctx, r.blobs, p.packObject)
	if err == nil && !slices.Equal(entries, p.entries) {
		err = fmt.Errorf("it exists with other records: %w", chunk.ErrDamaged)
	}
	p.taken = damagedOrCut(err)
	return err
}

// renew writes the records of a doubtful spool file, or of one whose name is
// taken, to a new one, under a new pack id. What is not what was received is left out: a commit that needs it
// answers that it is missing, and the agent sends it again. A file that is in
// the store already was synced before it came there, and stays as it is. nil
// means that no record is left.
func (r *Repository) renew(ctx context.Context, p *spoolPack) (_ *spoolPack, err error) {
	if !p.taken {
		_, err = blob.Stat(ctx, r.blobs, p.name)
		if err == nil {
			p.doubtful = false
			return p, nil
		}
		if !errors.Is(err, blob.ErrNotFound) {
			return nil, err
		}
	}
	fresh, err := r.newSpoolPack(filepath.Dir(p.path), p.kind)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, fresh.discard())
		}
	}()
	for _, e := range p.entries {
		b := make([]byte, e.Length)
		if _, err := p.file.ReadAt(b, e.Offset); err != nil && !errors.Is(err, io.EOF) {
			r.log.Error("a record of the spool cannot be read", "id", e.ID, "error", err)
			continue
		}
		record, err := parseAt(b, e)
		if err != nil {
			r.log.Error("a record of the spool is damaged", "id", e.ID, "error", err)
			continue
		}
		if err := fresh.write(b, record); err != nil {
			return nil, err
		}
	}
	if len(fresh.entries) == 0 {
		return nil, fresh.discard()
	}
	return fresh, fresh.seal()
}

// recoverSpool opens the spool file of a process that ended. Records after the
// first that is not whole were never acknowledged by a sync and are cut off. A
// file without any record gives nil and is removed.
func (r *Repository) recoverSpool(path string) (_ *spoolPack, err error) {
	base := filepath.Base(path)
	kind, text := chunk.KindData, strings.TrimSuffix(base, dataSuffix)
	if strings.HasSuffix(base, mapSuffix) {
		kind, text = chunk.KindPage, strings.TrimSuffix(base, mapSuffix)
	}
	id, err := ParsePackID(text)
	if err != nil {
		return nil, nil //nolint:nilerr // a file of another name is not ours
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("recover spool file: %w", err)
	}
	p := &spoolPack{packObject: packObject{id: id, kind: kind, name: r.packName(kind, id)}, path: path, file: file, known: map[chunk.ID]struct{}{}, doubtful: true}
	if err := p.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("recover spool file %s: %w", base, err), file.Close())
	}
	if len(p.entries) == 0 {
		return nil, p.discard()
	}
	return p, nil
}

// scan finds out what the file holds.
func (p *spoolPack) scan() error {
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	header := make([]byte, packHeaderSize)
	if _, err := p.file.ReadAt(header, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if kind, id, err := parsePackHeader(header); err != nil || kind != p.kind || id != p.id {
		return nil //nolint:nilerr // cut before it had anything; the file is dropped
	}
	p.size = packHeaderSize
	buf := make([]byte, window)
	for p.size < info.Size() {
		n, err := p.file.ReadAt(buf, p.size)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		used := p.take(buf[:n])
		if used == 0 {
			break
		}
	}
	return p.finish(info.Size())
}

// take adds the whole records at the start of b and returns their bytes.
func (p *spoolPack) take(b []byte) int {
	used := 0
	for {
		r, rest, err := chunk.ParseRecord(b[used:])
		if err != nil || r.Kind != p.kind {
			return used
		}
		p.entries = append(p.entries, entryOf(r, p.size))
		p.known[r.ID] = struct{}{}
		p.size += int64(r.Size())
		used = len(b) - len(rest)
	}
}

// finish keeps a whole footer, and cuts off everything else that follows the
// records.
func (p *spoolPack) finish(fileSize int64) error {
	footer := appendFooter(nil, p.id, p.size, p.entries)
	tail := make([]byte, len(footer))
	if fileSize == p.size+int64(len(footer)) {
		if _, err := p.file.ReadAt(tail, p.size); err == nil && string(tail) == string(footer) {
			p.size, p.sealed = fileSize, true
			return nil
		}
	}
	return p.file.Truncate(p.size)
}
