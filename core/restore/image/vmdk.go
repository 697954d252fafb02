package image

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/klauspost/compress/zlib"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/sdk"
)

// The shape of a stream-optimised VMDK, all of it fixed by what VMware's own
// tools write and accept.
const (
	grainSectors    = 128
	grain           = grainSectors * sector
	grainsPerTable  = 512
	tableBytes      = grainsPerTable * 4
	descriptorSpace = 20 * sector
	overheadSectors = 128

	markerEnd    = 0
	markerTable  = 1
	markerDir    = 2
	markerFooter = 3

	// grainBatch is how many grains are compressed at once, by all cores.
	grainBatch = 32
)

// vmdk appends compressed grains as the disk's data comes:
//
//	header, descriptor │ (grains …, grain table)… │ grain directory │ footer │ end
type vmdk struct {
	order
	file *os.File
	at   int64 // sectors written

	directory []uint32
	table     []byte
	number    int64 // of the table, -1: none is open

	grains  []grainBuffer // a batch; the last may still be growing
	used    int
	packers []*zlib.Writer
}

type grainBuffer struct {
	index  int64
	plain  []byte
	packed bytes.Buffer
}

var _ sdk.BlockWriter = (*vmdk)(nil)

func newVMDK(f *os.File, size int64) (sdk.BlockWriter, error) {
	sectors := (size + sector - 1) / sector
	tables := (sectors + grainSectors*grainsPerTable - 1) / (grainSectors * grainsPerTable)
	v := &vmdk{
		order: order{size: sectors * sector}, file: f, at: overheadSectors,
		directory: make([]uint32, max(1, tables)), table: make([]byte, tableBytes), number: -1,
		grains: make([]grainBuffer, grainBatch),
	}
	for i := range v.grains {
		v.grains[i].plain = make([]byte, grain)
	}
	for range runtime.GOMAXPROCS(0) {
		// Level 1: this is a copy to be imported, not to be kept.
		w, err := zlib.NewWriterLevel(nil, 1)
		if err != nil {
			return nil, err
		}
		v.packers = append(v.packers, w)
	}
	head := append(v.header(^uint64(0)), v.descriptor(sectors)...)
	_, err := f.WriteAt(head, 0)
	return v, err
}

func (v *vmdk) Size() int64      { return v.size }
func (v *vmdk) Shape() sdk.Shape { return sdk.ShapeSequential }
func (v *vmdk) Close() error     { return v.file.Close() }

// Zero skips: what is not written reads as zeroes.
func (v *vmdk) Zero(off, n int64) error { return v.advance(off, n) }

func (v *vmdk) WriteAt(p []byte, off int64) (int, error) {
	if err := v.advance(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		part := p[done:min(len(p), done+int(grain-at%grain))]
		g, err := v.grainFor(at / grain)
		if err != nil {
			return done, err
		}
		copy(g.plain[at%grain:], part)
		done += len(part)
	}
	return done, nil
}

// grainFor is the buffer of a grain, which is the last of the batch or new.
func (v *vmdk) grainFor(index int64) (*grainBuffer, error) {
	if v.used > 0 && v.grains[v.used-1].index == index {
		return &v.grains[v.used-1], nil
	}
	if v.used == len(v.grains) {
		if err := v.writeBatch(); err != nil {
			return nil, err
		}
	}
	g := &v.grains[v.used]
	v.used++
	g.index = index
	clear(g.plain)
	return g, nil
}

// writeBatch compresses the batch and appends it.
func (v *vmdk) writeBatch() error {
	var g errgroup.Group
	for first, packer := range v.packers {
		g.Go(func() error {
			for i := first; i < v.used; i += len(v.packers) {
				if err := v.grains[i].pack(packer); err != nil {
					return fmt.Errorf("compress: %w", err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range v.used {
		if err := v.writeGrain(&v.grains[i]); err != nil {
			return err
		}
	}
	v.used = 0
	return nil
}

// pack compresses the grain into a marker followed by the data; a grain of
// zeroes becomes nothing.
func (g *grainBuffer) pack(w *zlib.Writer) error {
	g.packed.Reset()
	if len(bytes.TrimLeft(g.plain, "\x00")) == 0 {
		return nil
	}
	var marker [12]byte
	g.packed.Write(marker[:])
	w.Reset(&g.packed)
	if _, err := w.Write(g.plain); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	b := g.packed.Bytes()
	binary.LittleEndian.PutUint64(b, uint64(g.index*grainSectors))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-len(marker)))
	if over := g.packed.Len() % sector; over > 0 {
		g.packed.Write(make([]byte, sector-over))
	}
	return nil
}

func (v *vmdk) writeGrain(g *grainBuffer) error {
	if g.packed.Len() == 0 {
		return nil
	}
	if number := g.index / grainsPerTable; number != v.number {
		if err := v.closeTable(); err != nil {
			return err
		}
		v.number = number
	}
	binary.LittleEndian.PutUint32(v.table[g.index%grainsPerTable*4:], uint32(v.at))
	return v.append(g.packed.Bytes())
}

// append writes whole sectors.
func (v *vmdk) append(b []byte) error {
	if v.at+int64(len(b)/sector) > 1<<32-1 {
		return fmt.Errorf("image is larger than the 2 TiB that the format can address: %w", sdk.ErrUnsupported)
	}
	if _, err := v.file.WriteAt(b, v.at*sector); err != nil {
		return err
	}
	writeBack(v.file, v.at*sector, int64(len(b)))
	v.at += int64(len(b) / sector)
	return nil
}

func marker(sectors uint64, kind uint32) []byte {
	b := make([]byte, sector)
	binary.LittleEndian.PutUint64(b, sectors)
	binary.LittleEndian.PutUint32(b[12:], kind)
	return b
}

func (v *vmdk) closeTable() error {
	if v.number < 0 {
		return nil
	}
	if err := v.append(marker(tableBytes/sector, markerTable)); err != nil {
		return err
	}
	v.directory[v.number] = uint32(v.at)
	if err := v.append(v.table); err != nil {
		return err
	}
	clear(v.table)
	v.number = -1
	return nil
}

// Flush completes the image and makes it durable.
func (v *vmdk) Flush() error {
	if v.complete {
		return v.file.Sync()
	}
	if err := v.writeBatch(); err != nil {
		return err
	}
	if err := v.closeTable(); err != nil {
		return err
	}
	space := (len(v.directory)*4 + sector - 1) / sector * sector
	directory := make([]byte, 0, space)
	for _, at := range v.directory {
		directory = binary.LittleEndian.AppendUint32(directory, at)
	}
	directory = directory[:space]
	if err := v.append(marker(uint64(space/sector), markerDir)); err != nil {
		return err
	}
	place := uint64(v.at)
	tail := append(directory, marker(1, markerFooter)...)
	tail = append(tail, v.header(place)...)
	if err := v.append(append(tail, marker(0, markerEnd)...)); err != nil {
		return err
	}
	v.complete = true
	return v.file.Sync()
}

// header is the file's first sector and, with the place of the directory, its
// footer.
func (v *vmdk) header(directory uint64) []byte {
	h := append(make([]byte, 0, sector), "KDMV"...)
	u32 := func(n uint32) { h = binary.LittleEndian.AppendUint32(h, n) }
	u64 := func(n uint64) { h = binary.LittleEndian.AppendUint64(h, n) }
	u32(3)                 // version
	u32(1 | 1<<16 | 1<<17) // newlines can be tested; compressed grains; markers
	u64(uint64(v.size) / sector)
	u64(grainSectors)
	u64(1) // descriptor
	u64(descriptorSpace / sector)
	u32(grainsPerTable)
	u64(0) // redundant directory
	u64(directory)
	u64(overheadSectors)
	h = append(h, 0, '\n', ' ', '\r', '\n')    // clean; characters that a text transfer would change
	h = binary.LittleEndian.AppendUint16(h, 1) // deflate
	return h[:sector]
}

func (v *vmdk) descriptor(sectors int64) []byte {
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	name := strings.TrimSuffix(filepath.Base(v.file.Name()), ".part")
	if strings.ContainsAny(name, "\"\r\n") || len(name) > 255 {
		name = "disk.vmdk"
	}
	text := fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
`, binary.BigEndian.Uint32(id[:])&0xfffffffe, sectors, name, max(1, sectors/(255*63)))
	return append([]byte(text), make([]byte, descriptorSpace-len(text))...)
}
