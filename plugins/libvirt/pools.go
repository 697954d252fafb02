package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"
)

// poolsKept is how long the pools of a host are remembered: a listing asks for them once and not for every disk.
const poolsKept = 10 * time.Second

// poolDirs says which pool a directory is.
type poolDirs struct {
	mu     sync.Mutex // guards what follows
	asked  time.Time
	byDir  map[string]string
	others bool // there are pools whose volumes lie in no directory of their own
}

// poolOf is the pool in which a file lies, or "".
func (p *platform) poolOf(ctx context.Context, file string) string {
	pool, certain := p.poolDirs.find(ctx, p, dirOf(file))
	if !certain {
		pool, _ = ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) {
			vol, err := lv.StorageVolLookupByPath(file)
			return vol.Pool, err
		})
	}
	return pool
}

// find is the pool of a directory, and whether that is the last word.
func (d *poolDirs) find(ctx context.Context, p *platform, dir string) (pool string, certain bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byDir == nil || time.Since(d.asked) > poolsKept {
		byDir, others, err := p.listPools(ctx)
		if err != nil {
			return "", false
		}
		d.byDir, d.others, d.asked = byDir, others, time.Now()
	}
	pool, ok := d.byDir[dir]
	return pool, ok || !d.others
}

// directories are the types of pools whose volumes are the files of one directory.
var directories = []string{"dir", "fs", "netfs", "logical"}

func (p *platform) listPools(ctx context.Context) (byDir map[string]string, others bool, err error) {
	pools, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) ([]libvirt.StoragePool, error) {
		pools, _, err := lv.ConnectListAllStoragePools(everything, libvirt.ConnectListStoragePoolsActive)
		return pools, err
	})
	if err != nil {
		return nil, false, err
	}
	byDir = make(map[string]string, len(pools))
	for _, pool := range pools {
		text, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) { return lv.StoragePoolGetXMLDesc(pool, 0) })
		if is(err, libvirt.ErrNoStoragePool) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		described, err := parseXML(text)
		if err != nil {
			return nil, false, err
		}
		if dir := described.at("target", "path").words(); dir != "" && slices.Contains(directories, described.get("type")) {
			byDir[dir] = pool.Name
		} else {
			others = true
		}
	}
	return byDir, others, nil
}
