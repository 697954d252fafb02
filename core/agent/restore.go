package agent

import (
	"github.com/holdfast-dr/holdfast/core/point"
)

// MachineRestore asks for a whole machine.
type MachineRestore struct {
	Point    string            `json:"point" minLength:"6" maxLength:"64" doc:"Id of the point, or enough of its start or end"`
	Endpoint string            `json:"endpoint,omitempty" maxLength:"128" doc:"Where to; where it came from if left out"`
	Name     string            `json:"name,omitempty" maxLength:"255" doc:"Of the new machine; the old name and the time if left out"`
	Pool     string            `json:"pool,omitempty" maxLength:"255" doc:"Storage pool; the back-end's default if left out"`
	Networks map[string]string `json:"networks,omitempty" doc:"From the machine's networks to those of the endpoint"`
	// Replace restores over the original: its name, said again, is the
	// confirmation.
	Replace string `json:"replace,omitempty" maxLength:"255" doc:"Name of the machine to restore over. It is stopped, and its disks are exchanged; the name is the confirmation"`
	Start   bool   `json:"start,omitempty" doc:"Power the machine on afterwards"`
}

// DiskRestore asks for one disk as a file on the agent's machine.
type DiskRestore struct {
	Point     string `json:"point" minLength:"6" maxLength:"64" doc:"Id of the point, or enough of its start or end"`
	Disk      string `json:"disk,omitempty" maxLength:"255" doc:"Name or id; may be left out if the point has one disk"`
	File      string `json:"file" minLength:"1" maxLength:"4096" doc:"Absolute path on the agent's machine"`
	Format    string `json:"format,omitempty" enum:"raw,qcow2,vmdk" doc:"raw (sparse) if left out; vmdk is stream-optimised"`
	Overwrite bool   `json:"overwrite,omitempty" doc:"Replace a file that exists"`
}

// RestoreResult is what a restore came to.
type RestoreResult struct {
	Point        point.ID `json:"point"`
	Machine      string   `json:"machine,omitempty" doc:"Name of the restored machine"`
	MachineID    string   `json:"machine_id,omitempty" doc:"At its endpoint"`
	File         string   `json:"file,omitempty"`
	SizeBytes    int64    `json:"size_bytes"`
	FetchedBytes int64    `json:"fetched_bytes" doc:"Sealed records that crossed the wire"`
	WrittenBytes int64    `json:"written_bytes"`
	Seconds      float64  `json:"seconds"`
	Bottleneck   string   `json:"bottleneck,omitempty"`
	Started      bool     `json:"started,omitempty"`
}

// VerifyRequest asks to fetch, open and hash every chunk of a point.
type VerifyRequest struct {
	Point string `json:"point" minLength:"6" maxLength:"64" doc:"Id of the point, or enough of its start or end"`
}

// VerifyResult is what it found.
type VerifyResult struct {
	Point        point.ID        `json:"point"`
	Chunks       int64           `json:"chunks"`
	FetchedBytes int64           `json:"fetched_bytes"`
	Damaged      []DamagedExtent `json:"damaged"`
	Seconds      float64         `json:"seconds"`
}

// DamagedExtent is a range of a disk that cannot be restored from this point.
// The next backup of a machine that still has these blocks sends them again.
type DamagedExtent struct {
	Disk   string `json:"disk"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Reason string `json:"reason"`
}
