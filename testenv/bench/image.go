package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30

	fsBlock      = 4 * kib  // of the file system
	trackerBlock = 64 * kib // of change trackers: QEMU's bitmaps have it by default
)

// recipe is what a pair of images is made from. The same recipe gives the same
// pair on one machine, for as long as its /usr stays as it is.
type recipe struct {
	sizeBytes int64
	changed   float64 // share of the disk that day 2 writes
}

// version is counted up when the same recipe gives another pair.
const version = 1

func (r recipe) name() string {
	return fmt.Sprintf("pair-%d-%g-v%d", r.sizeBytes>>20, r.changed, version)
}

// pair is the disk of a machine on two days: raw images with an ext4 file
// system, and the extents in which they differ.
type pair struct {
	recipe
	dir     string
	extents []extent
}

type extent struct{ offset, length int64 }

func (p pair) day(n int) string { return filepath.Join(p.dir, fmt.Sprintf("day%d.img", n)) }

// makePair makes the pair in the cache, or finds it there.
func makePair(ctx context.Context, r recipe) (pair, error) {
	p := pair{recipe: r, dir: filepath.Join(testenv.CacheDir(), "bench", r.name())}
	if xs, err := readExtents(filepath.Join(p.dir, "changed.tsv")); err == nil {
		p.extents = xs
		return p, nil
	}
	progress("making two images of %d GiB, once …", r.sizeBytes>>30)
	if err := os.MkdirAll(filepath.Dir(p.dir), 0o755); err != nil {
		return p, err
	}
	work, err := os.MkdirTemp(filepath.Dir(p.dir), "making-")
	if err != nil {
		return p, err
	}
	defer os.RemoveAll(work)
	m := maker{recipe: r, dir: work, random: rand.New(rand.NewPCG(1, 42))}
	if p.extents, err = m.make(ctx); err != nil {
		return p, fmt.Errorf("make the images: %w", err)
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return p, err
	}
	return p, os.Rename(work, p.dir)
}

// readExtents reads changed.tsv, which is written last.
func readExtents(path string) (xs []extent, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		var x extent
		if _, err := fmt.Sscanf(line, "%d\t%d\n", &x.offset, &x.length); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		xs = append(xs, x)
	}
	return xs, nil
}

// maker makes one pair.
type maker struct {
	recipe
	dir    string
	random *rand.Rand
}

// part is a share of the disk, in whole MiB.
func (m *maker) part(share float64) int64 { return int64(share*float64(m.sizeBytes)) &^ (mib - 1) }

const (
	databases  = 4
	recordings = 24
)

func (m *maker) make(ctx context.Context) ([]extent, error) {
	stage := filepath.Join(m.dir, "stage")
	if err := m.stage(stage); err != nil {
		return nil, err
	}
	first, after := filepath.Join(m.dir, "day1.img"), filepath.Join(m.dir, "day2.img")
	if err := sparseFile(first, m.sizeBytes); err != nil {
		return nil, err
	}
	const id = "6e0f1c3a-52a6-4a5b-9a41-0d7b6c1a2b3c"
	if _, err := tool(ctx, "mkfs.ext4", "-q", "-F", "-b", strconv.Itoa(fsBlock), "-I", "256", "-U", id,
		"-E", "hash_seed="+id+",lazy_itable_init=1,nodiscard", "-d", stage, first); err != nil {
		return nil, err
	}
	// What was deleted stays on the disk.
	if _, err := tool(ctx, "debugfs", "-w", "-R", "rm /deleted", first); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(stage); err != nil {
		return nil, err
	}
	if _, err := tool(ctx, "cp", "--sparse=always", "--reflink=auto", first, after); err != nil {
		return nil, err
	}
	if err := m.nextDay(ctx, after); err != nil {
		return nil, err
	}
	xs, err := differences(first, after)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	for _, x := range xs {
		fmt.Fprintf(&text, "%d\t%d\n", x.offset, x.length)
	}
	return xs, os.WriteFile(filepath.Join(m.dir, "changed.tsv"), []byte(text.String()), 0o600)
}

// stage lays out the files of day 1. The rest of the disk, more than a third,
// stays zero.
func (m *maker) stage(dir string) error {
	if err := m.system(filepath.Join(dir, "system"), m.part(0.30)); err != nil {
		return err
	}
	// Files that are there twice: another container with the same base.
	if _, err := copyFiles("/usr/share", filepath.Join(dir, "again"), m.part(0.03), nil); err != nil {
		return err
	}
	write := func(name string, share float64, fill func(dst []byte, offset int64)) error {
		return writeFile(filepath.Join(dir, name), m.part(share), fill)
	}
	for i := range databases {
		err := write(fmt.Sprintf("database%d", i), 0.03, func(dst []byte, offset int64) { m.pages(dst, uint64(i)<<32+uint64(offset/dbPage)) })
		if err != nil {
			return err
		}
	}
	if err := write("log", 0.05, func(dst []byte, _ int64) { m.log(dst) }); err != nil {
		return err
	}
	for i := range recordings {
		if err := write(fmt.Sprintf("recording%d", i), 0.005, func(dst []byte, _ int64) { m.noise(dst) }); err != nil {
			return err
		}
	}
	if err := write("deleted", 0.02, func(dst []byte, offset int64) { m.pages(dst, 1<<60+uint64(offset/dbPage)) }); err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, epoch, epoch)
	})
}

// epoch is the time of every file.
var epoch = time.Unix(1_700_000_000, 0)

// system copies programs, libraries and documents of this machine. Where it has
// too few, they are copied again with their bytes exchanged, which are new to
// every tool and compress the same.
func (m *maker) system(dir string, budget int64) error {
	sources := []string{"/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/lib", "/usr/local"}
	for round := 0; budget >= mib; round++ {
		var exchange *[256]byte
		if round > 0 {
			exchange = new([256]byte)
			for i, b := range m.random.Perm(256) {
				exchange[i] = byte(b)
			}
		}
		before := budget
		for i, source := range sources {
			used, err := copyFiles(source, filepath.Join(dir, fmt.Sprintf("%d-%d", round, i)), budget/int64(len(sources)-i), exchange)
			if err != nil {
				return err
			}
			budget -= used
		}
		if before == budget {
			return nil // nothing that fits
		}
	}
	return nil
}

// copyFiles copies regular files of a tree, in the order of their names, until
// the budget is used up, and says how much is.
func copyFiles(source, target string, budget int64, exchange *[256]byte) (used int64, err error) {
	err = filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be read is left out
		}
		info, err := d.Info()
		if err != nil || info.Size() == 0 || info.Size() > budget/3 {
			return nil //nolint:nilerr // as above
		}
		if used+info.Size() > budget {
			return fs.SkipAll
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		if exchange != nil {
			for i, b := range content {
				content[i] = exchange[b]
			}
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		to := filepath.Join(target, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		used += (int64(len(content)) + fsBlock - 1) / fsBlock * fsBlock
		return os.WriteFile(to, content, 0o600)
	})
	return used, err
}

func writeFile(path string, size int64, fill func(dst []byte, offset int64)) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	buf := make([]byte, mib)
	for offset := int64(0); offset < size && err == nil; offset += mib {
		b := buf[:min(mib, size-offset)]
		fill(b, offset)
		_, err = f.Write(b)
	}
	return errors.Join(err, f.Close())
}

func sparseFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// overwrites are the sizes of writes into existing files, in KiB: mostly single
// pages of databases, now and then a longer run.
var overwrites = []int64{4, 4, 4, 8, 8, 8, 8, 16, 16, 32, 64, 64, 128, 256, 1024}

// nextDay writes to the disk: two thirds of the changes go into databases and
// the log, one third into new files.
func (m *maker) nextDay(ctx context.Context, image string) error {
	budget := int64(m.changed * float64(m.sizeBytes))
	if err := m.addFiles(ctx, image, budget/3); err != nil {
		return err
	}
	var places []extent
	for _, name := range append([]string{"/log"}, numbered("/database", databases)...) {
		xs, err := fileExtents(ctx, image, name)
		if err != nil {
			return err
		}
		places = append(places, xs...)
	}
	if len(places) == 0 {
		return errors.New("debugfs names no extents of the databases")
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for left := budget - budget/3; left > 0 && err == nil; {
		at := places[m.random.IntN(len(places))]
		n := min(overwrites[m.random.IntN(len(overwrites))]*kib, at.length, (left+fsBlock-1)/fsBlock*fsBlock)
		data := make([]byte, n)
		m.pages(data, m.random.Uint64()>>8)
		_, err = f.WriteAt(data, at.offset+m.random.Int64N((at.length-n)/fsBlock+1)*fsBlock)
		left -= n
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func numbered(name string, n int) (names []string) {
	for i := range n {
		names = append(names, name+strconv.Itoa(i))
	}
	return names
}

func (m *maker) addFiles(ctx context.Context, image string, budget int64) error {
	dir := filepath.Join(m.dir, "new")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	script := "mkdir /new\n"
	for i := 0; budget > 0; i++ {
		size := min(budget, int64(64*kib+m.random.IntN(4*mib)))
		budget -= size
		path := filepath.Join(dir, strconv.Itoa(i))
		err := writeFile(path, size, func(dst []byte, offset int64) {
			switch i % 3 {
			case 0:
				m.log(dst)
			case 1:
				m.noise(dst)
			default:
				m.pages(dst, 1<<40+uint64(offset))
			}
		})
		if err != nil {
			return err
		}
		script += fmt.Sprintf("write %s /new/%d\n", path, i)
	}
	commands := filepath.Join(dir, "commands")
	if err := os.WriteFile(commands, []byte(script), 0o600); err != nil {
		return err
	}
	if _, err := tool(ctx, "debugfs", "-w", "-f", commands, image); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// fileExtents says where on the disk a file lies.
func fileExtents(ctx context.Context, image, name string) (xs []extent, err error) {
	out, err := tool(ctx, "debugfs", "-R", "dump_extents -l "+name, image)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		// " 2/ 2   1/ 41      0 -   32766   34816 -   67582  32767": level and depth, number, logical, physical, length
		fields := strings.Fields(strings.NewReplacer("/", " ", "-", " ").Replace(line))
		if len(fields) < 9 || fields[0] != fields[1] {
			continue
		}
		block, err1 := strconv.ParseInt(fields[6], 10, 64)
		count, err2 := strconv.ParseInt(fields[8], 10, 64)
		if err1 == nil && err2 == nil {
			xs = append(xs, extent{block * fsBlock, count * fsBlock})
		}
	}
	return xs, nil
}

// tool runs a program whose output is the same each time, and returns it.
func tool(ctx context.Context, name string, args ...string) (string, error) {
	path, ok := testenv.FindTool(name)
	if !ok {
		return "", fmt.Errorf("%s is missing: testenv/setup.sh bench installs it", name)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME="+strconv.FormatInt(epoch.Unix(), 10), "DEBUGFS_PAGER=cat", "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// differences lists where two images differ, as a change tracker would.
func differences(first, after string) (xs []extent, err error) {
	a, err := os.Open(first)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	b, err := os.Open(after)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	one, two := bufio.NewReaderSize(a, mib), bufio.NewReaderSize(b, mib)
	x, y := make([]byte, trackerBlock), make([]byte, trackerBlock)
	for offset := int64(0); ; offset += trackerBlock {
		n, err := io.ReadFull(one, x)
		if errors.Is(err, io.EOF) {
			return xs, nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		if _, err := io.ReadFull(two, y[:n]); err != nil {
			return nil, err
		}
		if bytes.Equal(x[:n], y[:n]) {
			continue
		}
		if last := len(xs) - 1; last >= 0 && xs[last].offset+xs[last].length == offset {
			xs[last].length += int64(n)
		} else {
			xs = append(xs, extent{offset, int64(n)})
		}
	}
}
