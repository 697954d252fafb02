package sim

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"

	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	// blockSize is the grain of change tracking and of copying aside. It is
	// what hypervisors use.
	blockSize = 64 << 10
	// entrySize is the size of one block's entry in a table.
	entrySize = 8
	// movedHeader is what a table of moved blocks begins with: zero while the
	// snapshot is open.
	movedHeader = 8
)

// An entry of a disk's table is the generation of the block's last write. One
// of a snapshot's table is zero while the block is still in the disk, else the
// generation at the snapshot plus one, with zeroBlock set if all was zero.
const zeroBlock = 1 << 63

func entryAt(f file, at int64) (uint64, error) {
	var b [entrySize]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

func putEntry(f file, at int64, v uint64) error {
	_, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, v), at)
	return err
}

// guestWrite is a write of the guest, under the store's lock.
func (st *state) guestWrite(s store, id sdk.MachineID, diskID sdk.DiskID, d *disk, off int64, data []byte) error {
	image, err := s.open(d.image())
	if err != nil {
		return err
	}
	defer image.Close()
	table, err := s.open(d.table())
	if err != nil {
		return err
	}
	defer table.Close()

	snap := st.openSnapshot(id)
	if snap != nil {
		if i, ok := snap.Disks[diskID]; ok && i.Disk.UID == d.UID {
			if err := preserve(s, snap.ID, i, image, table, off, int64(len(data))); err != nil {
				return fmt.Errorf("keep what snapshot %s shows: %w", snap.ID, err)
			}
		}
	}
	for b := off / blockSize; b*blockSize < off+int64(len(data)) && (snap == nil || !st.Lossy); b++ {
		if err := putEntry(table, b*entrySize, d.Generation); err != nil {
			return err
		}
	}
	_, err = image.WriteAt(data, off)
	return err
}

// preserve copies the blocks of [off, off+n) aside for a snapshot, bytes
// first, so that a process killed inside leaves every block in one place.
func preserve(s store, snapshotID string, i *image, disk, table file, off, n int64) error {
	aside, err := s.open(i.aside(snapshotID))
	if err != nil {
		return err
	}
	defer aside.Close()
	moved, err := s.open(i.moved(snapshotID))
	if err != nil {
		return err
	}
	defer moved.Close()

	buf := make([]byte, blockSize)
	for b := off / blockSize; b*blockSize < off+n; b++ {
		entry, err := entryAt(moved, movedHeader+b*entrySize)
		if err != nil {
			return err
		}
		if entry != 0 {
			continue
		}
		piece := buf[:min(blockSize, i.Disk.SizeBytes-b*blockSize)]
		if _, err := disk.ReadAt(piece, b*blockSize); err != nil {
			return err
		}
		generation, err := entryAt(table, b*entrySize)
		if err != nil {
			return err
		}
		entry = generation + 1
		if allZero(piece) {
			entry |= zeroBlock
		} else if _, err := aside.WriteAt(piece, b*blockSize); err != nil {
			return err
		}
		if err := putEntry(moved, movedHeader+b*entrySize, entry); err != nil {
			return err
		}
	}
	return nil
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// picture is one disk as a snapshot shows it, opened.
type picture struct {
	store store
	size  int64
	id    string // of the snapshot
	disk  file
	table file
	aside file
	moved file
}

func openPicture(s store, snapshotID string, i *image) (*picture, error) {
	p := &picture{store: s, size: i.Disk.SizeBytes, id: snapshotID}
	for _, f := range []struct {
		to   *file
		name string
	}{
		{&p.disk, i.Disk.image()},
		{&p.table, i.Disk.table()},
		{&p.aside, i.aside(snapshotID)},
		{&p.moved, i.moved(snapshotID)},
	} {
		opened, err := openFile(s, f.name, "a file of snapshot "+snapshotID)
		if err != nil {
			p.close()
			return nil, err
		}
		*f.to = opened
	}
	return p, nil
}

func (p *picture) close() {
	for _, f := range []file{p.disk, p.table, p.aside, p.moved} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// hold keeps guests from writing and checks that the snapshot is still open.
func (p *picture) hold() (func(), error) {
	unlock, err := p.store.rlock()
	if err != nil {
		return nil, err
	}
	ended, err := entryAt(p.moved, 0)
	if err == nil && ended != 0 {
		err = sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "snapshot %s has ended", p.id)
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// readAt follows io.ReaderAt.
func (p *picture) readAt(data []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: negative offset", off)
	}
	if off >= p.size {
		return 0, io.EOF
	}
	unlock, err := p.hold()
	if err != nil {
		return 0, err
	}
	defer unlock()
	n := int(min(int64(len(data)), p.size-off))
	if _, err := p.disk.ReadAt(data[:n], off); err != nil {
		return 0, err
	}
	first, end := off/blockSize, (off+int64(n)+blockSize-1)/blockSize
	entries := make([]byte, (end-first)*entrySize)
	if _, err := p.moved.ReadAt(entries, movedHeader+first*entrySize); err != nil {
		return 0, err
	}
	for b := first; b < end; b++ {
		entry := binary.LittleEndian.Uint64(entries[(b-first)*entrySize:])
		if entry == 0 {
			continue
		}
		from, to := max(b*blockSize, off), min((b+1)*blockSize, off+int64(n))
		piece := data[from-off : to-off]
		if entry&zeroBlock != 0 {
			clear(piece)
		} else if _, err := p.aside.ReadAt(piece, from); err != nil {
			return 0, err
		}
	}
	if n < len(data) {
		return n, io.EOF
	}
	return n, nil
}

// batch is how many blocks a walk over a disk looks at in one go, so that
// guests are held up for a short time and memory stays small.
const batch = 8192

// extents describes [off, off+n) in runs of holes and data.
func (p *picture) extents(off, n int64) iter.Seq2[sdk.Extent, error] {
	return p.walk(off, n, func(from, to int64, add func(sdk.Extent)) error {
		first := from / blockSize
		entries := make([]byte, ((to+blockSize-1)/blockSize-first)*entrySize)
		if _, err := p.moved.ReadAt(entries, movedHeader+first*entrySize); err != nil {
			return err
		}
		for e, err := range p.disk.Extents(from, to-from) {
			if err != nil {
				return err
			}
			for at := e.Offset; at < e.End(); {
				next := min((at/blockSize+1)*blockSize, e.End())
				zero := e.Zero
				if entry := binary.LittleEndian.Uint64(entries[(at/blockSize-first)*entrySize:]); entry != 0 {
					zero = entry&zeroBlock != 0
				}
				add(sdk.Extent{Offset: at, Length: next - at, Zero: zero})
				at = next
			}
		}
		return nil
	})
}

// changed lists what was written after a generation and before the snapshot.
func (p *picture) changed(since uint64) iter.Seq2[sdk.Extent, error] {
	return p.walk(0, p.size, func(from, to int64, add func(sdk.Extent)) error {
		first, end := from/blockSize, (to+blockSize-1)/blockSize
		moved := make([]byte, (end-first)*entrySize)
		table := make([]byte, len(moved))
		if _, err := p.moved.ReadAt(moved, movedHeader+first*entrySize); err != nil {
			return err
		}
		if _, err := p.table.ReadAt(table, first*entrySize); err != nil {
			return err
		}
		for b := first; b < end; b++ {
			generation := binary.LittleEndian.Uint64(table[(b-first)*entrySize:])
			entry := binary.LittleEndian.Uint64(moved[(b-first)*entrySize:])
			if entry != 0 {
				generation = entry&^zeroBlock - 1
			}
			if generation > since {
				at := b * blockSize
				add(sdk.Extent{Offset: at, Length: min(blockSize, p.size-at), Zero: entry&zeroBlock != 0})
			}
		}
		return nil
	})
}

// walk looks at [off, off+n) a batch at a time and joins what adjoins.
func (p *picture) walk(off, n int64, look func(from, to int64, add func(sdk.Extent)) error) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		if off < 0 || n < 0 || off+n > p.size {
			yield(sdk.Extent{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "%d bytes at %d are outside of %d", n, off, p.size))
			return
		}
		var run sdk.Extent
		for end := off + n; off < end; {
			to := min((off/blockSize+batch)*blockSize, end)
			var found []sdk.Extent
			add := func(e sdk.Extent) {
				if run.Length > 0 && run.End() == e.Offset && run.Zero == e.Zero {
					run.Length += e.Length
					return
				}
				if run.Length > 0 {
					found = append(found, run)
				}
				run = e
			}
			unlock, err := p.hold()
			if err == nil {
				err = look(off, to, add)
				unlock()
			}
			if err != nil {
				yield(sdk.Extent{}, err)
				return
			}
			for _, e := range found {
				if !yield(e, nil) {
					return
				}
			}
			off = to
		}
		if run.Length > 0 {
			yield(run, nil)
		}
	}
}
