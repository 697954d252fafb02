package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// Ready is what a guest prints on its serial console when its shell is there.
const Ready = "GUEST-READY"

// Options say what image to build. The zero value is right for most.
type Options struct {
	Cache string // directory that keeps images; "" is testenv.CacheDir
	Agent bool   // with the QEMU guest agent, for freeze and thaw
	// DataBytes is the size of vdb, 64 MiB if 0. It is sparse.
	DataBytes int64
}

// Image is a built guest. Its files belong to the cache: Clone them.
type Image struct {
	Boot, Data string // qcow2
	Agent      bool
}

// Machine is a guest's own pair of disks.
type Machine struct {
	Boot, Data string // qcow2
}

// Clone copies the image's disks to dir, as name-vda.qcow2 and name-vdb.qcow2.
func (i Image) Clone(dir, name string) (Machine, error) {
	m := Machine{
		Boot: filepath.Join(dir, name+"-vda.qcow2"),
		Data: filepath.Join(dir, name+"-vdb.qcow2"),
	}
	if err := copyFile(m.Boot, i.Boot); err != nil {
		return Machine{}, err
	}
	if err := copyFile(m.Data, i.Data); err != nil {
		return Machine{}, err
	}
	return m, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("clone guest: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("clone guest: %w", err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("clone guest to %s: %w", to, err)
	}
	return nil
}

// SequenceOffset is where the counter writes on each disk: a sector in front of the first partition, which no boot loader
// and no file system uses.
const SequenceOffset = sequenceSector * sectorBytes

const (
	sectorBytes      = 512
	sequenceSector   = 2040
	firstPartition   = 2048 // sectors
	sequencePrefix   = "HOLDFAST-SEQ "
	sequenceDigits   = 12
	bootFSBytes      = 24 << 20
	rootFSBytes      = 103 << 20
	bootDiskBytes    = firstPartition*sectorBytes + bootFSBytes + rootFSBytes
	defaultDataBytes = 64 << 20
)

// Sequence reads the counter from a disk; 0 if it never ran.
func Sequence(disk io.ReaderAt) (int64, error) {
	sector := make([]byte, sectorBytes)
	if _, err := disk.ReadAt(sector, SequenceOffset); err != nil {
		return 0, fmt.Errorf("read the counter's sector: %w", err)
	}
	if bytes.Equal(sector, make([]byte, sectorBytes)) {
		return 0, nil
	}
	digits, ok := bytes.CutPrefix(sector, []byte(sequencePrefix))
	if !ok {
		return 0, fmt.Errorf("the counter's sector holds %q", sector[:32])
	}
	n, err := strconv.ParseInt(string(digits[:sequenceDigits]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse the counter: %w", err)
	}
	return n, nil
}
