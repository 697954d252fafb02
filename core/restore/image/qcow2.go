package image

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/holdfast-dr/holdfast/sdk"
)

// The shape of our qcow2 files: clusters as large as a chunk, so that a chunk
// is one piece, and reference counts of 16 bits, QEMU's default.
const (
	clusterBits    = 18
	cluster        = 1 << clusterBits
	l2Entries      = cluster / 8
	refsPerBlock   = cluster / 2
	qcowCopied     = 1 << 63 // the cluster has one reference
	qcowHeaderSize = 104
)

// qcow2 appends clusters as the disk's data comes:
//
//	header │ L1 table │ (L2 table, its data clusters …)… │ refcount blocks │ refcount table
//
// Everything lies without a gap and has one reference, so the reference counts
// need no bookkeeping. The header is written last.
type qcow2 struct {
	order
	file *os.File
	end  int64 // of the file, a whole number of clusters

	l1      []byte
	l2      []byte // of the stretch that is being written
	l2At    int64  // its place in the file; 0: none is open
	stretch int64  // its number
	guest   int64  // cluster of the disk that was written last
	host    int64  // its place in the file; 0: none yet
}

var _ sdk.BlockWriter = (*qcow2)(nil)

func newQCOW2(f *os.File, size int64) (sdk.BlockWriter, error) {
	size = (size + sector - 1) / sector * sector
	tables := (size + l2Entries*cluster - 1) / (l2Entries * cluster)
	q := &qcow2{order: order{size: size}, file: f, l1: make([]byte, max(1, tables)*8), l2: make([]byte, cluster)}
	q.end = cluster + clusters(int64(len(q.l1)))*cluster
	return q, nil
}

// clusters is how many hold n bytes.
func clusters(n int64) int64 { return (n + cluster - 1) / cluster }

func (q *qcow2) Size() int64      { return q.size }
func (q *qcow2) Shape() sdk.Shape { return sdk.ShapeSequential }
func (q *qcow2) Close() error     { return q.file.Close() }

// Zero skips: what is not written reads as zeroes.
func (q *qcow2) Zero(off, n int64) error { return q.advance(off, n) }

func (q *qcow2) WriteAt(p []byte, off int64) (int, error) {
	if err := q.advance(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		part := p[done:min(len(p), done+int(cluster-at%cluster))]
		host, err := q.place(at / cluster)
		if err != nil {
			return done, err
		}
		if _, err := q.file.WriteAt(part, host+at%cluster); err != nil {
			return done, err
		}
		writeBack(q.file, host+at%cluster, int64(len(part)))
		done += len(part)
	}
	return done, nil
}

// place is where a cluster of the disk lies in the file.
func (q *qcow2) place(guest int64) (int64, error) {
	if q.host != 0 && guest == q.guest {
		return q.host, nil
	}
	if q.l2At == 0 || guest/l2Entries != q.stretch {
		if err := q.closeTable(); err != nil {
			return 0, err
		}
		q.stretch, q.l2At = guest/l2Entries, q.allocate()
		binary.BigEndian.PutUint64(q.l1[q.stretch*8:], uint64(q.l2At)|qcowCopied)
	}
	q.guest, q.host = guest, q.allocate()
	binary.BigEndian.PutUint64(q.l2[guest%l2Entries*8:], uint64(q.host)|qcowCopied)
	return q.host, nil
}

func (q *qcow2) allocate() int64 {
	at := q.end
	q.end += cluster
	return at
}

func (q *qcow2) closeTable() error {
	if q.l2At == 0 {
		return nil
	}
	if _, err := q.file.WriteAt(q.l2, q.l2At); err != nil {
		return err
	}
	clear(q.l2)
	q.l2At = 0
	return nil
}

// Flush completes the image and makes it durable.
func (q *qcow2) Flush() error {
	if q.complete {
		return q.file.Sync()
	}
	if err := q.closeTable(); err != nil {
		return err
	}
	if _, err := q.file.WriteAt(q.l1, cluster); err != nil {
		return err
	}
	table, tableClusters, err := q.writeCounts()
	if err != nil {
		return err
	}
	if err := q.file.Truncate(q.end); err != nil { // the last cluster may be shorter than its place
		return err
	}
	if _, err := q.file.WriteAt(q.header(table, tableClusters), 0); err != nil {
		return err
	}
	q.complete = true
	return q.file.Sync()
}

// writeCounts appends the reference counts, which cover themselves too.
func (q *qcow2) writeCounts() (table, tableClusters int64, err error) {
	used := q.end / cluster
	blocks := int64(0)
	for {
		tableClusters = clusters(blocks * 8)
		need := (used + blocks + tableClusters + refsPerBlock - 1) / refsPerBlock
		if need == blocks {
			break
		}
		blocks = need
	}
	first := q.end
	q.end += (blocks + tableClusters) * cluster
	table = first + blocks*cluster
	total := q.end / cluster
	block, entries := make([]byte, cluster), make([]byte, tableClusters*cluster)
	for b := range blocks {
		for i := range int64(refsPerBlock) {
			binary.BigEndian.PutUint16(block[i*2:], 0)
			if b*refsPerBlock+i < total {
				binary.BigEndian.PutUint16(block[i*2:], 1)
			}
		}
		if _, err := q.file.WriteAt(block, first+b*cluster); err != nil {
			return 0, 0, fmt.Errorf("write reference counts: %w", err)
		}
		binary.BigEndian.PutUint64(entries[b*8:], uint64(first+b*cluster))
	}
	_, err = q.file.WriteAt(entries, table)
	return table, tableClusters, err
}

func (q *qcow2) header(table, tableClusters int64) []byte {
	h := append(make([]byte, 0, qcowHeaderSize+8), 'Q', 'F', 'I', 0xfb)
	u32 := func(v uint32) { h = binary.BigEndian.AppendUint32(h, v) }
	u64 := func(v uint64) { h = binary.BigEndian.AppendUint64(h, v) }
	u32(3)
	u64(0) // backing file
	u32(0)
	u32(clusterBits)
	u64(uint64(q.size))
	u32(0) // encryption
	u32(uint32(len(q.l1) / 8))
	u64(cluster) // L1 table
	u64(uint64(table))
	u32(uint32(tableClusters))
	u32(0) // snapshots
	u64(0)
	u64(0) // incompatible, compatible and auto-clear features
	u64(0)
	u64(0)
	u32(4) // reference counts of 1<<4 bits
	u32(qcowHeaderSize)
	u64(0) // end of header extensions
	return h
}
