package plugin

import (
	"math"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// Bounds of what may cross the border, in both directions.
const (
	// MaxMessage is the largest message, in bytes: a machine's native
	// description, its disks and their marks, with room to spare.
	MaxMessage = 8 << 20

	maxDisks    = 1024
	maxNICs     = 1024
	maxTags     = 1024
	maxText     = 64 << 10 // any single string
	maxID       = 4 << 10
	maxMachines = 1 << 20
	maxFindings = 256
	maxPEM      = 256 << 10
	// batchExtents is how many extents travel in one message.
	batchExtents = 4096
)

// broken is an answer that breaks the contract.
func broken(format string, args ...any) error {
	return troubled(TroubleBreach, sdk.Errorf(nil, sdk.FaultPlugin, "the plugin's answer breaks the contract: "+format, args...))
}

func toOp(op sdk.Op) *pluginv1.Op {
	return &pluginv1.Op{Id: op.ID, Space: string(op.Space), Epoch: op.Epoch}
}

func fromOp(op *pluginv1.Op) sdk.Op {
	return sdk.Op{ID: op.GetId(), Space: sdk.Space(op.GetSpace()), Epoch: op.GetEpoch()}
}

func toMachine(m sdk.Machine) *pluginv1.Machine {
	wire := &pluginv1.Machine{
		Id: string(m.ID), Name: m.Name, Uuid: m.UUID, Firmware: string(m.Firmware), State: string(m.State),
		Cpus: int32(min(max(m.CPUs, 0), math.MaxInt32)), MemoryBytes: m.MemoryBytes, Tags: m.Tags, Native: m.Native,
	}
	for _, d := range m.Disks {
		wire.Disks = append(wire.Disks, &pluginv1.Disk{
			Id: string(d.ID), Name: d.Name, SizeBytes: d.SizeBytes, Format: d.Format, Pool: d.Pool, Skip: d.Skip,
		})
	}
	for _, n := range m.NICs {
		wire.Nics = append(wire.Nics, &pluginv1.NIC{Mac: n.MAC, Network: n.Network, Model: n.Model})
	}
	return wire
}

func fromMachine(wire *pluginv1.Machine) sdk.Machine {
	m := sdk.Machine{
		ID: sdk.MachineID(wire.GetId()), Name: wire.GetName(), UUID: wire.GetUuid(),
		Firmware: sdk.Firmware(wire.GetFirmware()), State: sdk.State(wire.GetState()),
		CPUs: int(wire.GetCpus()), MemoryBytes: wire.GetMemoryBytes(), Tags: wire.GetTags(), Native: wire.GetNative(),
	}
	for _, d := range wire.GetDisks() {
		m.Disks = append(m.Disks, sdk.Disk{
			ID: sdk.DiskID(d.GetId()), Name: d.GetName(), SizeBytes: d.GetSizeBytes(),
			Format: d.GetFormat(), Pool: d.GetPool(), Skip: d.GetSkip(),
		})
	}
	for _, n := range wire.GetNics() {
		m.NICs = append(m.NICs, sdk.NIC{MAC: n.GetMac(), Network: n.GetNetwork(), Model: n.GetModel()})
	}
	return m
}

// checkMachine holds a machine that a plugin answered against the contract.
func checkMachine(m sdk.Machine) error {
	switch {
	case m.ID == "" || len(m.ID) > maxID:
		return broken("a machine's id has %d bytes", len(m.ID))
	case len(m.Native) > sdk.MaxNative:
		return broken("machine %s has a native description of %d bytes, at most %d", m.ID, len(m.Native), sdk.MaxNative)
	case len(m.Disks) > maxDisks || len(m.NICs) > maxNICs || len(m.Tags) > maxTags:
		return broken("machine %s has %d disks, %d interfaces and %d tags", m.ID, len(m.Disks), len(m.NICs), len(m.Tags))
	case len(m.Name) > maxText || m.CPUs < 0 || m.MemoryBytes < 0:
		return broken("machine %s has an impossible name, CPU count or memory", m.ID)
	}
	seen := make(map[sdk.DiskID]bool, len(m.Disks))
	for _, d := range m.Disks {
		switch {
		case d.ID == "" || len(d.ID) > maxID || seen[d.ID]:
			return broken("machine %s has a disk without an id of its own", m.ID)
		case d.SizeBytes < 0:
			return broken("disk %s of machine %s has %d bytes", d.ID, m.ID, d.SizeBytes)
		}
		seen[d.ID] = true
	}
	return nil
}

func toSnapshot(s sdk.Snapshot) *pluginv1.Snapshot {
	wire := &pluginv1.Snapshot{
		Id: s.ID, Machine: toMachine(s.Machine), Achieved: string(s.Achieved), Note: s.Note, Marks: toMarks(s.Marks),
	}
	if !s.Taken.IsZero() {
		wire.TakenMicros = s.Taken.UnixMicro()
	}
	return wire
}

func fromSnapshot(wire *pluginv1.Snapshot) sdk.Snapshot {
	s := sdk.Snapshot{
		ID: wire.GetId(), Machine: fromMachine(wire.GetMachine()), Achieved: sdk.Quiesce(wire.GetAchieved()),
		Note: wire.GetNote(), Marks: fromMarks(wire.GetMarks()),
	}
	if wire.GetTakenMicros() != 0 {
		s.Taken = time.UnixMicro(wire.GetTakenMicros()).UTC()
	}
	return s
}

// checkSnapshot holds a snapshot that a plugin answered against the contract.
func checkSnapshot(s sdk.Snapshot) error {
	if s.ID == "" || len(s.ID) > maxID || len(s.Note) > maxText {
		return broken("a snapshot's id has %d bytes, its note %d", len(s.ID), len(s.Note))
	}
	if err := checkMachine(s.Machine); err != nil {
		return err
	}
	switch s.Achieved {
	case sdk.QuiesceNone, sdk.QuiesceFileSystem, sdk.QuiesceApplication:
	default:
		return broken("snapshot %s achieved %q", s.ID, s.Achieved)
	}
	disks := make(map[sdk.DiskID]bool, len(s.Machine.Disks))
	for _, d := range s.Machine.Disks {
		disks[d.ID] = true
	}
	for id, mark := range s.Marks {
		if !disks[id] {
			return broken("snapshot %s has a mark of disk %s, which is not in it", s.ID, id)
		}
		if len(mark) == 0 || len(mark) > sdk.MaxMark {
			return broken("the mark of disk %s has %d bytes, want 1 to %d", id, len(mark), sdk.MaxMark)
		}
	}
	return nil
}

func toMarks(marks map[sdk.DiskID]sdk.Mark) map[string][]byte {
	if marks == nil {
		return nil
	}
	wire := make(map[string][]byte, len(marks))
	for id, mark := range marks {
		wire[string(id)] = mark
	}
	return wire
}

func fromMarks(wire map[string][]byte) map[sdk.DiskID]sdk.Mark {
	marks := make(map[sdk.DiskID]sdk.Mark, len(wire))
	for id, mark := range wire {
		marks[sdk.DiskID(id)] = mark
	}
	return marks
}

func toDraft(d sdk.Draft) *pluginv1.Draft {
	wire := &pluginv1.Draft{Id: d.ID}
	for _, id := range d.Disks {
		wire.Disks = append(wire.Disks, string(id))
	}
	return wire
}

func fromDraft(wire *pluginv1.Draft) sdk.Draft {
	d := sdk.Draft{ID: wire.GetId()}
	for _, id := range wire.GetDisks() {
		d.Disks = append(d.Disks, sdk.DiskID(id))
	}
	return d
}

func toAddress(a sdk.Address) *pluginv1.Address {
	wire := &pluginv1.Address{
		Network: a.Network, Addr: a.Addr, Export: a.Export, DirtyBitmap: a.DirtyBitmap,
		Connections: int32(min(max(a.Connections, 0), math.MaxInt32)),
	}
	if a.TLS != nil {
		wire.Tls = &pluginv1.AddressTLS{Ca: a.TLS.CA, Cert: a.TLS.Cert, Key: a.TLS.Key, ServerName: a.TLS.ServerName}
	}
	return wire
}

// maxConnections bounds what a plugin may make the host open to a disk.
const maxConnections = 16

func fromAddress(wire *pluginv1.Address) (sdk.Address, error) {
	a := sdk.Address{
		Network: wire.GetNetwork(), Addr: wire.GetAddr(), Export: wire.GetExport(), DirtyBitmap: wire.GetDirtyBitmap(),
		Connections: int(min(max(wire.GetConnections(), 0), maxConnections)),
	}
	if a.Network != "unix" && a.Network != "tcp" || a.Addr == "" {
		return sdk.Address{}, broken("a disk at %q %q", a.Network, a.Addr)
	}
	if len(a.Addr) > maxID || len(a.Export) > maxID || len(a.DirtyBitmap) > maxID {
		return sdk.Address{}, broken("a disk's address of more than %d bytes", maxID)
	}
	if t := wire.GetTls(); t != nil {
		if len(t.GetCa())+len(t.GetCert())+len(t.GetKey()) > maxPEM {
			return sdk.Address{}, broken("TLS certificates of more than %d bytes", maxPEM)
		}
		a.TLS = &sdk.AddressTLS{CA: t.GetCa(), Cert: t.GetCert(), Key: t.GetKey(), ServerName: t.GetServerName()}
	}
	return a, nil
}

func fromReport(wire *pluginv1.ProbeResponse) (sdk.Report, error) {
	if len(wire.GetFindings()) > maxFindings || len(wire.GetProduct()) > maxText {
		return sdk.Report{}, broken("a report of %d findings", len(wire.GetFindings()))
	}
	r := sdk.Report{Product: wire.GetProduct()}
	for _, f := range wire.GetFindings() {
		r.Findings = append(r.Findings, sdk.Finding{
			Ability: sdk.Ability(f.GetAbility()), Works: f.GetWorks(),
			Reason: clip(f.GetReason(), maxErrorText), Hint: clip(f.GetHint(), maxErrorHint),
		})
	}
	return r, nil
}

func toReport(r sdk.Report) *pluginv1.ProbeResponse {
	wire := &pluginv1.ProbeResponse{Product: r.Product}
	for _, f := range r.Findings {
		wire.Findings = append(wire.Findings, &pluginv1.Finding{
			Ability: string(f.Ability), Works: f.Works, Reason: f.Reason, Hint: f.Hint,
		})
	}
	return wire
}
