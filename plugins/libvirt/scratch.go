package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// While a snapshot is open, QEMU copies each block that the guest is about to overwrite to a scratch file. The guest's write
// waits for that copy and for nothing else: a slow reader costs it no time, but room. When the room is used up QEMU fails
// the guest's write, so the guard ends the backup before.

const (
	scratchPause = 500 * time.Millisecond // the longest between two looks at the scratch files
	scratchHaste = 50 * time.Millisecond  // the shortest
	// fastestGuest is what no guest writes in a second: the next look is not later than it could fill what room there is.
	fastestGuest = 2 << 30
	// scratchReserve is the least room that a backup leaves where its scratch files lie, if there was four times as much.
	scratchReserve = 256 << 20
)

// scratchLimit bounds the scratch files of one snapshot. Zero means that there is no such bound.
type scratchLimit struct {
	Bytes int64  `json:"bytes"` // all of them together
	Dir   string `json:"dir"`   // where free space can be seen from here
	Free  int64  `json:"free"`  // that has to stay
}

// limitScratch is what the operator set, or half of what is free at the start: two snapshots at once, and the guests' own
// growth, find room beside it.
func (p *platform) limitScratch(ctx context.Context, dir string) scratchLimit {
	limit := scratchLimit{Bytes: p.mostScratch}
	free, known := int64(0), false
	if p.endpoint.local() {
		limit.Dir = dir
		free, known = freeSpace(dir)
	} else {
		free, known = p.poolSpace(ctx, dir)
	}
	if !known {
		return limit
	}
	if limit.Bytes == 0 {
		limit.Bytes = free / 2
	}
	limit.Free = min(scratchReserve, free/4)
	return limit
}

// poolSpace is the room in the pool whose directory this is.
func (p *platform) poolSpace(ctx context.Context, dir string) (int64, bool) {
	free, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (uint64, error) {
		pool, err := lv.StoragePoolLookupByTargetPath(dir)
		if err != nil {
			return 0, err
		}
		_, _, _, available, err := lv.StoragePoolGetInfo(pool)
		return available, err
	})
	return int64(min(free, 1<<62)), err == nil && free > 0
}

// scratchUse is how much room a snapshot takes.
type scratchUse struct {
	bytes int64
	free  int64 // -1: not known
}

// scratchUse asks QEMU how much it has copied, which is what the files hold, and the file system what is left.
func (p *platform) scratchUse(ctx context.Context, dom libvirt.Domain, limit scratchLimit) (scratchUse, error) {
	use := scratchUse{free: -1}
	params, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) ([]libvirt.TypedParam, error) {
		_, params, err := lv.DomainGetJobStats(dom, 0)
		return params, err
	})
	if err != nil {
		return use, err
	}
	for _, param := range params {
		if n, ok := param.Value.I.(uint64); ok && param.Field == libvirt.DomainJobDiskTempUsed {
			use.bytes = int64(min(n, 1<<62))
		}
	}
	if limit.Dir != "" {
		if free, ok := freeSpace(limit.Dir); ok {
			use.free = free
		}
	}
	return use, nil
}

func (u scratchUse) full(limit scratchLimit) bool {
	return limit.Bytes > 0 && u.bytes >= limit.Bytes
}

func (u scratchUse) broken(limit scratchLimit) bool {
	return u.full(limit) || u.free >= 0 && u.free < limit.Free
}

func (u scratchUse) reason(limit scratchLimit) string {
	if u.full(limit) {
		return fmt.Sprintf("the guest overwrote %d MiB while they were being read, and scratch files may take no more than %d MiB",
			u.bytes>>20, limit.Bytes>>20)
	}
	return fmt.Sprintf("only %d MiB are free where the scratch files lie", u.free>>20)
}

func (u scratchUse) pause(limit scratchLimit) time.Duration {
	room := int64(fastestGuest)
	if limit.Bytes > 0 {
		room = min(room, limit.Bytes-u.bytes)
	}
	if u.free >= 0 {
		room = min(room, u.free-limit.Free)
	}
	wait := time.Duration(float64(max(room, 0)) / fastestGuest * float64(time.Second))
	return min(max(wait, scratchHaste), scratchPause)
}

// breakOff ends a backup for the guest's sake, and writes on the machine why, for whoever finds its disks gone.
func (p *platform) breakOff(ctx context.Context, dom libvirt.Domain, j *job, why string) error {
	run, err := p.runOf(ctx, dom)
	if err != nil {
		return err
	}
	if run == nil {
		run = new(runMetadata)
	}
	run.Op, run.Broken, run.Why = j.ticket.op, j.ticket.checkpoint(), why
	if err := p.setMetadata(ctx, dom, xmlnsRun, *run, libvirt.DomainAffectLive); err != nil {
		return err
	}
	return p.abort(ctx, dom, j)
}

// brokenOff is the error for a snapshot that the guard ended, or nil.
func (r *runMetadata) brokenOff(checkpoint string) error {
	if r == nil || r.Broken != checkpoint {
		return nil
	}
	return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "the snapshot was ended to spare the guest: %s", r.Why).
		WithHint("run the backup when the guest writes less, or give it more room with the settings scratch_limit and scratch_dir")
}

// parseSize reads a number of bytes with one of libvirt's units.
func parseSize(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	digits := strings.TrimRight(text, "KMGTiB")
	shift, known := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[strings.TrimSuffix(text[len(digits):], "iB")]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !known || n <= 0 || n > 1<<62>>shift {
		return 0, invalid("setting scratch_limit %q is not a size such as 512M or 20G", text)
	}
	return n << shift, nil
}

// scratchDirs are the directories for the scratch files of a machine's disks: what the operator set, or beside each
// image, where there is room for images and QEMU may write. A disk that is no file goes with the first that is one, and
// without any to the pool for restored disks.
func (p *platform) scratchDirs(ctx context.Context, d domainXML) (map[sdk.DiskID]string, error) {
	dirs := make(map[sdk.DiskID]string)
	fallback := strings.TrimRight(p.config.ScratchDir, "/")
	set := fallback != ""
	var homeless []sdk.DiskID
	for _, disk := range d.Devices.Disks {
		if disk.skip() != "" {
			continue
		}
		id, file := sdk.DiskID(disk.Target.Dev), disk.Source.File
		if disk.Type == "volume" && !set {
			file = p.volumeFile(ctx, disk.Source.Pool, disk.Source.Volume)
		}
		if set || file == "" {
			homeless = append(homeless, id)
			continue
		}
		if dirs[id] = dirOf(file); fallback == "" {
			fallback = dirs[id]
		}
	}
	if len(homeless) > 0 && fallback == "" {
		var err error
		if fallback, err = p.poolDir(ctx); err != nil {
			return nil, err
		}
	}
	for _, id := range homeless {
		dirs[id] = fallback
	}
	return dirs, nil
}

// volumeFile is the file of a volume; "" for one that is none.
func (p *platform) volumeFile(ctx context.Context, pool, volume string) string {
	file, _ := ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) {
		in, err := lv.StoragePoolLookupByName(pool)
		if err != nil {
			return "", err
		}
		vol, err := lv.StorageVolLookupByName(in, volume)
		if err != nil {
			return "", err
		}
		kind, _, _, err := lv.StorageVolGetInfo(vol)
		if err != nil || libvirt.StorageVolType(kind) != libvirt.StorageVolFile {
			return "", err
		}
		return lv.StorageVolGetPath(vol)
	})
	return file
}

func (p *platform) poolDir(ctx context.Context) (string, error) {
	name, err := p.choosePool(ctx, space{}, "")
	if err != nil {
		return "", fmt.Errorf("find room for scratch files, since no disk of the machine is a file: %w", err)
	}
	text, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) {
		pool, err := lv.StoragePoolLookupByName(name)
		if err != nil {
			return "", err
		}
		return lv.StoragePoolGetXMLDesc(pool, 0)
	})
	if err != nil {
		return "", err
	}
	pool, err := parseXML(text)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(pool.at("target", "path").words(), "/"), nil
}

// filePrefix begins the names of all scratch files and sockets that this installation makes for a machine, so that those
// of a run that nobody remembers are found.
func (p *platform) filePrefix(machine sdk.MachineID) string {
	sum := sha256.Sum256([]byte(p.instance + " " + string(machine)))
	return "holdfast-" + hex.EncodeToString(sum[:6]) + "-"
}

func scratchName(prefix, stamp string, disk sdk.DiskID) string {
	return prefix + stamp + "-" + string(disk) + ".scratch"
}

// sweepMachine removes the files that backups of a machine left. No backup of ours may be running. Where we may not look,
// as at a remote host, libvirt sees the files that lie in its pools.
func (p *platform) sweepMachine(ctx context.Context, dom libvirt.Domain, d domainXML) error {
	dirs, err := p.scratchDirs(ctx, d)
	if err != nil {
		return ignore(err, sdk.ErrInvalid) // then none was ever made
	}
	prefix := p.filePrefix(machineID(dom))
	for _, dir := range slices.Compact(slices.Sorted(maps.Values(dirs))) {
		denied := false
		if p.endpoint.local() {
			denied, err = removeFiles(dir, prefix)
		}
		if denied || !p.endpoint.local() {
			err = p.removeVolumes(ctx, dir, prefix)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removeFiles reports denied if an ordinary user may not list the directory, as libvirt's own.
func removeFiles(dir, prefix string) (denied bool, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if errors.Is(err, os.ErrPermission) {
		return true, nil
	}
	if err != nil {
		return false, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "look for files that a backup left: %v", err)
	}
	for _, entry := range entries {
		if isScratch(entry.Name(), prefix) {
			if err := removeFile(dir + "/" + entry.Name()); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

func removeFile(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "remove %s: %v", file, err)
	}
	return nil
}

func isScratch(name, prefix string) bool {
	return strings.HasPrefix(name, prefix) && (strings.HasSuffix(name, ".scratch") || strings.HasSuffix(name, ".sock"))
}

// removeVolumes does it at a remote host, if the directory is a pool's.
func (p *platform) removeVolumes(ctx context.Context, dir, prefix string) error {
	return do(ctx, p.control, func(lv *libvirt.Libvirt) error {
		pool, err := lv.StoragePoolLookupByTargetPath(dir)
		if is(err, libvirt.ErrNoStoragePool) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := lv.StoragePoolRefresh(pool, 0); err != nil {
			return err
		}
		volumes, _, err := lv.StoragePoolListAllVolumes(pool, everything, 0)
		for _, vol := range volumes {
			if isScratch(vol.Name, prefix) {
				if err := lv.StorageVolDelete(vol, 0); err != nil && !is(err, libvirt.ErrNoStorageVol) {
					return err
				}
			}
		}
		return err
	})
}
