package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// ticket identifies one snapshot. It is in the name of every export of its job and, but for epoch and flag, in that of its
// checkpoint, so that a fresh process knows whose they are.
type ticket struct {
	instance string
	epoch    uint64
	op       string // label of the operation's id
	stamp    int64  // when, in microseconds; makes a repeated operation's checkpoint a new one, for a mark is bound to one moment
	frozen   bool
}

func (t ticket) export(disk sdk.DiskID) string {
	how := "n"
	if t.frozen {
		how = "f"
	}
	return fmt.Sprintf("holdfast.%s.%d.%s.%s.%s.%s", t.instance, t.epoch, t.op, t.stampText(), how, disk)
}

func (t ticket) stampText() string { return strconv.FormatInt(t.stamp, 36) }

var exportName = regexp.MustCompile(`^holdfast\.([0-9a-f]{8})\.([0-9]{1,20})\.([A-Za-z0-9_-]{1,64})\.([0-9a-z]{1,13})\.([nf])\.`)

func parseExport(name string) (ticket, bool) {
	m := exportName.FindStringSubmatch(name)
	if m == nil {
		return ticket{}, false
	}
	epoch, err1 := strconv.ParseUint(m[2], 10, 64)
	stamp, err2 := strconv.ParseInt(m[4], 36, 64)
	return ticket{instance: m[1], epoch: epoch, op: m[3], stamp: stamp, frozen: m[5] == "f"}, err1 == nil && err2 == nil
}

// checkpoint is the name of the checkpoint that the snapshot makes.
func (t ticket) checkpoint() string {
	return checkpointPrefix + t.instance + "-" + t.op + "-" + t.stampText()
}

const checkpointPrefix = "holdfast-"

var checkpointName = regexp.MustCompile(`^holdfast-([0-9a-f]{8})-([A-Za-z0-9_-]{1,64})-([0-9a-z]{1,13})$`)

// parseCheckpoint reads the name of a checkpoint, which is also that of its bitmaps.
func parseCheckpoint(name string) (ticket, bool) {
	m := checkpointName.FindStringSubmatch(name)
	if m == nil {
		return ticket{}, false
	}
	stamp, err := strconv.ParseInt(m[3], 36, 64)
	return ticket{instance: m[1], op: m[2], stamp: stamp}, err == nil
}

// snapshotID is the checkpoint's name behind the machine's id: all that is needed to find the rest.
func (t ticket) snapshotID(machine sdk.MachineID) string {
	return string(machine) + "/" + t.checkpoint()
}

func parseSnapshotID(id string) (machine sdk.MachineID, checkpoint string, ok bool) {
	m, c, ok := strings.Cut(id, "/")
	return sdk.MachineID(m), c, ok && m != "" && strings.HasPrefix(c, checkpointPrefix)
}

// job is a machine's running backup.
type job struct {
	XMLName xml.Name  `xml:"domainbackup"`
	Mode    string    `xml:"mode,attr"`
	Server  jobServer `xml:"server"`
	Disks   []jobDisk `xml:"disks>disk"`

	ticket ticket
	mine   bool // of Holdfast, whatever installation
}

type jobServer struct {
	Transport string `xml:"transport,attr"`
	Socket    string `xml:"socket,attr,omitempty"`
	Name      string `xml:"name,attr,omitempty"`
	Port      string `xml:"port,attr,omitempty"`
	TLS       string `xml:"tls,attr,omitempty"`
}

type jobDisk struct {
	Name        string      `xml:"name,attr"`
	Backup      string      `xml:"backup,attr"`
	Type        string      `xml:"type,attr,omitempty"`
	Mode        string      `xml:"backupmode,attr,omitempty"`
	Incremental string      `xml:"incremental,attr,omitempty"`
	Export      string      `xml:"exportname,attr,omitempty"`
	Bitmap      string      `xml:"exportbitmap,attr,omitempty"`
	Scratch     *jobScratch `xml:"scratch"`
}

type jobScratch struct {
	File string `xml:"file,attr"`
}

// currentJob is the machine's backup, or nil.
func (p *platform) currentJob(ctx context.Context, dom libvirt.Domain) (*job, error) {
	text, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) { return lv.DomainBackupGetXMLDesc(dom, 0) })
	if is(err, libvirt.ErrNoDomainBackup) || is(err, libvirt.ErrOperationInvalid) { // the latter: it is off
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j := new(job)
	if err := xml.Unmarshal([]byte(text), j); err != nil {
		return nil, sdk.Errorf(nil, sdk.FaultBackend, "libvirt's description of a backup: %v", err)
	}
	for _, d := range j.Disks {
		if t, ok := parseExport(d.Export); ok {
			j.ticket, j.mine = t, true
		}
	}
	return j, nil
}

func (j *job) ours(instance string) bool { return j.mine && j.ticket.instance == instance }

func (j *job) disk(id sdk.DiskID) (jobDisk, bool) {
	i := slices.IndexFunc(j.Disks, func(d jobDisk) bool { return d.Name == string(id) && d.Backup == "yes" })
	if i < 0 {
		return jobDisk{}, false
	}
	return j.Disks[i], true
}

// abort ends a backup, which is also the normal end of one, and waits until it is gone: libvirt removes the scratch files
// a moment after it has answered. What remains nevertheless, such as a socket of a QEMU that was killed, is removed.
func (p *platform) abort(ctx context.Context, dom libvirt.Domain, j *job) error {
	err := do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.DomainAbortJob(dom) })
	if err != nil && !is(err, libvirt.ErrOperationInvalid) {
		return fmt.Errorf("end the backup of %s: %w", dom.Name, err)
	}
	for {
		now, err := p.currentJob(ctx, dom)
		if err != nil && !errors.Is(err, sdk.ErrNotFound) {
			return err
		}
		if now == nil || now.ticket != j.ticket {
			break
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "the backup of %s does not end", dom.Name)
		}
	}
	return p.sweep(ctx, j)
}

// pause waits between two looks at something.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sweep removes the files of an ended backup.
func (p *platform) sweep(ctx context.Context, j *job) error {
	if !p.endpoint.local() {
		return p.sweepRemote(ctx, j)
	}
	files := []string{j.Server.Socket}
	for _, d := range j.Disks {
		if d.Scratch != nil {
			files = append(files, d.Scratch.File)
		}
	}
	for _, file := range files {
		if file == "" {
			continue
		}
		if err := removeFile(file); err != nil {
			return err
		}
	}
	return nil
}

// sweepRemote can reach only files in pools. libvirt has removed them unless QEMU was killed.
func (p *platform) sweepRemote(ctx context.Context, j *job) error {
	for _, d := range j.Disks {
		if d.Scratch == nil {
			continue
		}
		err := p.deleteFile(ctx, d.Scratch.File)
		if err != nil && !errors.Is(err, sdk.ErrNotFound) {
			return fmt.Errorf("remove scratch file %s: %w", d.Scratch.File, err)
		}
	}
	return nil
}

// deleteFile removes a file that lies in a pool; sdk.ErrNotFound if it lies in none or is gone.
func (p *platform) deleteFile(ctx context.Context, file string) error {
	vol, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (libvirt.StorageVol, error) {
		pool, err := lv.StoragePoolLookupByTargetPath(dirOf(file))
		if err != nil {
			return libvirt.StorageVol{}, err
		}
		if err := lv.StoragePoolRefresh(pool, 0); err != nil {
			return libvirt.StorageVol{}, err
		}
		return lv.StorageVolLookupByPath(file)
	})
	if err != nil {
		return err
	}
	return do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.StorageVolDelete(vol, 0) })
}
