package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var kernelName = regexp.MustCompile(`Depends: (linux-image-[0-9][^\s]*)`)

// kernelPackage is the file name of the kernel's package. A cached one is good enough, so that a machine without network
// still has its guests.
func (b *builder) kernelPackage(ctx context.Context) (string, error) {
	known, err := filepath.Glob(filepath.Join(b.cache, "linux-image-*.deb"))
	if err != nil {
		return "", err
	}
	if len(known) > 0 {
		slices.Sort(known)
		return filepath.Base(known[len(known)-1]), nil
	}
	name, err := b.newestKernel(ctx)
	if err != nil {
		if fresh := b.freshLists(ctx); fresh != nil {
			return "", errors.Join(err, fresh)
		}
		if name, err = b.newestKernel(ctx); err != nil {
			return "", err
		}
	}
	return b.download(ctx, name)
}

func (b *builder) newestKernel(ctx context.Context) (string, error) {
	out, err := b.apt(ctx, "apt-cache", "depends", kernelMeta)
	if err != nil {
		return "", err
	}
	name := kernelName.FindSubmatch(out)
	if name == nil {
		return "", fmt.Errorf("apt knows no kernel behind %s", kernelMeta)
	}
	return string(name[1]), nil
}

// download fetches a package, without installing it, into the cache and returns its file name.
func (b *builder) download(ctx context.Context, name string) (string, error) {
	find := func() (string, bool) {
		found, _ := filepath.Glob(filepath.Join(b.cache, name+"_*.deb"))
		if len(found) == 0 {
			return "", false
		}
		slices.Sort(found)
		return filepath.Base(found[len(found)-1]), true
	}
	if file, ok := find(); ok {
		return file, nil
	}
	// apt writes the file under its final name at the end, so a broken download leaves nothing that looks whole.
	err := b.fetch(ctx, name)
	if err != nil && b.lists == nil { // old lists name versions that the mirror has dropped
		if fresh := b.freshLists(ctx); fresh != nil {
			return "", errors.Join(err, fresh)
		}
		err = b.fetch(ctx, name)
	}
	if err != nil {
		return "", err
	}
	if file, ok := find(); ok {
		return file, nil
	}
	return "", fmt.Errorf("apt-get download %s left no package", name)
}

// fetch downloads a package in the newest version that the mirror still has of those that the lists name.
func (b *builder) fetch(ctx context.Context, name string) error {
	_, err := b.apt(ctx, "apt-get", "download", name)
	if err == nil {
		return nil
	}
	for _, version := range b.versions(ctx, name) {
		if _, err := b.apt(ctx, "apt-get", "download", name+"="+version); err == nil {
			return nil
		}
	}
	return err
}

// versions are those of a package that the lists name, the newest first.
func (b *builder) versions(ctx context.Context, name string) (versions []string) {
	out, err := b.apt(ctx, "apt-cache", "madison", name)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Split(line, "|"); len(fields) > 1 {
			versions = append(versions, strings.TrimSpace(fields[1]))
		}
	}
	return versions
}

// apt runs one of apt's programs in the cache.
func (b *builder) apt(ctx context.Context, program string, args ...string) ([]byte, error) {
	options := []string{"-q", "-o", "APT::Sandbox::User=root"} // its own user may not write to the cache, and says so
	return run(ctx, b.cache, nil, program, slices.Concat(options, b.lists, args)...)
}

// freshLists gets lists of packages for this build alone. They need no root, and the machine's stay as they are.
func (b *builder) freshLists(ctx context.Context) error {
	state, cache := filepath.Join(b.work, "apt-state"), filepath.Join(b.work, "apt-cache")
	for _, dir := range []string{filepath.Join(state, "lists", "partial"), filepath.Join(cache, "archives", "partial")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make room for lists of packages: %w", err)
		}
	}
	b.lists = []string{"-o", "Dir::State=" + state, "-o", "Dir::Cache=" + cache, "-o", "Dir::State::status=/var/lib/dpkg/status"}
	if _, err := b.apt(ctx, "apt-get", "update"); err != nil {
		return fmt.Errorf("get lists of packages: %w", err)
	}
	return nil
}
