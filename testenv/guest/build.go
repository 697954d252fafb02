package guest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/testenv"
)

// Tools are the programs that Build runs, for testenv.Need.
var Tools = []string{
	"apt-cache", "apt-get", "busybox", "dpkg", "mcopy", "mke2fs", "mkfs.vfat", "qemu-img", "sfdisk", "syslinux",
}

const (
	kernelMeta   = "linux-image-cloud-amd64" // depends on the newest kernel
	agentPackage = "qemu-guest-agent"
	bootRecord   = "/usr/lib/syslinux/mbr/mbr.bin"
)

// Build returns the image, from the cache if it was built before. Builds of several processes wait for each other.
func Build(ctx context.Context, o Options) (Image, error) {
	if o.Cache == "" {
		o.Cache = testenv.CacheDir()
	}
	if o.DataBytes == 0 {
		o.DataBytes = defaultDataBytes
	}
	cache := filepath.Join(o.Cache, "guest")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return Image{}, fmt.Errorf("make the guest cache: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	b := builder{cache: cache, options: o}
	image, err := b.build(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("build the guest image: %w", err)
	}
	return image, nil
}

// lock takes an exclusive lock that ends with the process.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the guest cache: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock the guest cache: %w", err)
	}
	return func() { file.Close() }, nil
}

type builder struct {
	cache   string
	options Options
	work    string   // scratch directory of this build
	lists   []string // options that make apt use lists of the build's own, once it has some
}

func (b *builder) build(ctx context.Context) (Image, error) {
	var err error
	if b.work, err = os.MkdirTemp(b.cache, "build-"); err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(b.work)
	kernel, err := b.kernelPackage(ctx)
	if err != nil {
		return Image{}, err
	}
	name := b.imageName(kernel)
	image := Image{
		Boot:  filepath.Join(b.cache, name+"-vda.qcow2"),
		Data:  filepath.Join(b.cache, fmt.Sprintf("%s-vdb-%d.qcow2", name, b.options.DataBytes)),
		Agent: b.options.Agent,
	}
	if !exists(image.Boot) {
		if err := b.bootDisk(ctx, kernel, image.Boot); err != nil {
			return Image{}, err
		}
	}
	if !exists(image.Data) {
		if err := b.dataDisk(ctx, image.Data); err != nil {
			return Image{}, err
		}
	}
	return image, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// imageName changes whenever what goes into the image does.
func (b *builder) imageName(kernel string) string {
	h := sha256.New()
	fmt.Fprintln(h, kernel, modules, rootDirs, initramfsInit, syslinuxConfig, bootDiskBytes)
	for _, path := range slices.Sorted(maps.Keys(rootFiles)) {
		fmt.Fprintln(h, path, rootFiles[path])
	}
	kind := "plain"
	if b.options.Agent {
		kind = "agent"
	}
	return fmt.Sprintf("%s-%s-%x", strings.TrimSuffix(kernel, ".deb"), kind, h.Sum(nil)[:6])
}

func (b *builder) bootDisk(ctx context.Context, kernel, path string) error {
	tree := filepath.Join(b.work, "kernel")
	if _, err := run(ctx, b.cache, nil, "dpkg", "-x", kernel, tree); err != nil {
		return err
	}
	vmlinuz, err := one(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil {
		return err
	}
	initrd := filepath.Join(b.work, "initrd")
	if err := b.initramfs(tree, initrd); err != nil {
		return err
	}
	rootFS, err := b.rootFS(ctx)
	if err != nil {
		return err
	}
	bootFS, err := b.bootFS(ctx, vmlinuz, initrd)
	if err != nil {
		return err
	}
	table := fmt.Sprintf("label: dos\nstart=%d, size=%d, type=e, bootable\nsize=%d, type=83\n",
		firstPartition, bootFSBytes/sectorBytes, rootFSBytes/sectorBytes)
	return b.disk(ctx, path, bootDiskBytes, table, []part{
		{file: bootRecord, offset: 0},
		{file: bootFS, offset: firstPartition * sectorBytes},
		{file: rootFS, offset: firstPartition*sectorBytes + bootFSBytes},
	})
}

func (b *builder) dataDisk(ctx context.Context, path string) error {
	size := b.options.DataBytes - firstPartition*sectorBytes
	if size < 8<<20 {
		return fmt.Errorf("a data disk of %d bytes is too small", b.options.DataBytes)
	}
	fs := filepath.Join(b.work, "data.ext4")
	if err := b.ext4(ctx, fs, size, ""); err != nil {
		return err
	}
	table := fmt.Sprintf("label: dos\nstart=%d, type=83\n", firstPartition)
	return b.disk(ctx, path, b.options.DataBytes, table, []part{{file: fs, offset: firstPartition * sectorBytes}})
}

// initramfs writes what the kernel runs first: busybox and the modules.
func (b *builder) initramfs(kernelTree, path string) error {
	busybox, err := busyboxFile()
	if err != nil {
		return err
	}
	kernelDir, err := one(filepath.Join(kernelTree, "lib", "modules", "*"))
	if err != nil {
		return err
	}
	var archive cpio
	for _, dir := range []string{"bin", "dev", "proc", "root", "modules"} {
		archive.add(dir, dirMode, nil)
	}
	archive.add("bin/busybox", programMode, busybox)
	archive.add("init", programMode, []byte(initramfsInit))
	var order []string
	for _, module := range modules {
		data, err := os.ReadFile(filepath.Join(kernelDir, "kernel", module))
		if err != nil {
			return fmt.Errorf("read a kernel module: %w", err)
		}
		name := filepath.Base(module)
		archive.add("modules/"+name, fileMode, data)
		order = append(order, name)
	}
	archive.add("modules.order", fileMode, []byte(strings.Join(order, "\n")+"\n"))
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := zip.Write(archive.end()); err != nil {
		return err
	}
	if err := zip.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, packed.Bytes(), 0o600)
}

func busyboxFile() ([]byte, error) {
	path, ok := testenv.FindTool("busybox")
	if !ok {
		return nil, errors.New("busybox is not installed")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read busybox: %w", err)
	}
	// A dynamic busybox would find no library in the guest, and the console would only say that init is missing.
	if bytes.Contains(data, []byte("/lib64/ld-linux")) {
		return nil, errors.New("busybox is not static: install busybox-static")
	}
	return data, nil
}

func (b *builder) rootFS(ctx context.Context) (string, error) {
	tree := filepath.Join(b.work, "root")
	for _, dir := range rootDirs {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return "", err
		}
	}
	for path, text := range rootFiles {
		if err := writeFile(filepath.Join(tree, path), []byte(text)); err != nil {
			return "", err
		}
	}
	if err := b.installBusybox(ctx, tree); err != nil {
		return "", err
	}
	if b.options.Agent {
		if err := b.installAgent(ctx, tree); err != nil {
			return "", err
		}
	}
	fs := filepath.Join(b.work, "root.ext4")
	return fs, b.ext4(ctx, fs, rootFSBytes, tree)
}

func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o755)
}

func (b *builder) installBusybox(ctx context.Context, tree string) error {
	busybox, err := busyboxFile()
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(tree, "bin/busybox"), busybox); err != nil {
		return err
	}
	applets, err := run(ctx, b.work, nil, "busybox", "--list-full")
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(applets)) {
		// Everything in /bin and /sbin: the guest has no /usr.
		path := filepath.Join(tree, strings.TrimPrefix(applet, "usr/"))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("/bin/busybox", path); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

var library = regexp.MustCompile(`(/\S+\.so\S*) \(0x`)

// installAgent puts the guest agent in, with this machine's libraries: the image serves this machine alone.
func (b *builder) installAgent(ctx context.Context, tree string) error {
	deb, err := b.download(ctx, agentPackage)
	if err != nil {
		return err
	}
	unpacked := filepath.Join(b.work, "agent")
	if _, err := run(ctx, b.cache, nil, "dpkg", "-x", deb, unpacked); err != nil {
		return err
	}
	agent := filepath.Join(unpacked, "usr/sbin/qemu-ga")
	linked, err := run(ctx, b.work, nil, "ldd", agent)
	if err != nil {
		return err
	}
	files := map[string]string{"sbin/qemu-ga": agent}
	for _, found := range library.FindAllSubmatch(linked, -1) {
		files[string(found[1])] = string(found[1])
	}
	for to, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("read a part of the guest agent: %w", err)
		}
		if err := writeFile(filepath.Join(tree, to), data); err != nil {
			return err
		}
	}
	return nil
}

// ext4 makes a file system with a journal, because crash consistency is what guests are there to prove.
func (b *builder) ext4(ctx context.Context, path string, size int64, tree string) error {
	args := []string{"-q", "-t", "ext4", "-F", "-E", "root_owner=0:0"}
	if tree != "" {
		args = append(args, "-d", tree)
	}
	_, err := run(ctx, b.work, nil, "mke2fs", append(args, path, fmt.Sprintf("%dk", size>>10))...)
	return err
}

func (b *builder) bootFS(ctx context.Context, vmlinuz, initrd string) (string, error) {
	fs := filepath.Join(b.work, "boot.fat")
	config := filepath.Join(b.work, "syslinux.cfg")
	if err := os.WriteFile(config, []byte(syslinuxConfig), 0o600); err != nil {
		return "", err
	}
	for _, command := range [][]string{
		{"mkfs.vfat", "-C", "-F", "16", fs, fmt.Sprint(bootFSBytes >> 10)},
		{"mcopy", "-i", fs, vmlinuz, "::vmlinuz"},
		{"mcopy", "-i", fs, initrd, "::initrd"},
		{"mcopy", "-i", fs, config, "::syslinux.cfg"},
		{"syslinux", "--install", fs},
	} {
		if _, err := run(ctx, b.work, nil, command[0], command[1:]...); err != nil {
			return "", err
		}
	}
	return fs, nil
}

// part is a file that goes to an offset of a disk.
type part struct {
	file   string
	offset int64
}

// disk makes a partitioned qcow2 image.
func (b *builder) disk(ctx context.Context, path string, size int64, table string, parts []part) error {
	raw := filepath.Join(b.work, "disk.raw")
	defer os.Remove(raw)
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(raw, size); err != nil {
		return err
	}
	if _, err := run(ctx, b.work, strings.NewReader(table), "sfdisk", "--quiet", raw); err != nil {
		return err
	}
	for _, p := range parts {
		if err := copyInto(raw, p); err != nil {
			return err
		}
	}
	made := filepath.Join(b.work, "disk.qcow2")
	if _, err := run(ctx, b.work, nil, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, made); err != nil {
		return err
	}
	return os.Rename(made, path)
}

func copyInto(disk string, p part) error {
	in, err := os.Open(p.file)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	buffer := make([]byte, 1<<20)
	zeroes := make([]byte, len(buffer))
	for offset := p.offset; ; {
		n, err := io.ReadFull(in, buffer)
		if n > 0 && !bytes.Equal(buffer[:n], zeroes[:n]) { // keeps the file sparse
			if _, err := out.WriteAt(buffer[:n], offset); err != nil {
				return errors.Join(err, out.Close())
			}
		}
		offset += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return out.Close()
		}
		if err != nil {
			return errors.Join(err, out.Close())
		}
	}
}

// one is the only file that a pattern matches.
func one(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files match %s, not one", len(found), pattern)
	}
	return found[0], nil
}

func run(ctx context.Context, dir string, in io.Reader, name string, args ...string) ([]byte, error) {
	path, ok := testenv.FindTool(name)
	if !ok {
		return nil, fmt.Errorf("%s is not installed", name)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Stdin = in
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run %s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}
