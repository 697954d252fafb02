// Package sim is a hypervisor that exists only in memory or in a directory:
// machines, disks, changed-block tracking, drafts, power, and faults on
// request. Tests of everything above the contract use it, and so does a
// machine on which no real hypervisor can be had.
//
// A Hypervisor is the back-end, what outlives every plugin process. New keeps
// it in memory; Open keeps it in a directory, which any number of processes
// may open at the same time. Connect gives a Platform, which is what one
// plugin process would hold; everything that a repeat of a call needs lies in
// the Hypervisor, so two Platforms of one Hypervisor stand for a process and
// the fresh one after it.
//
//	hv := sim.New()
//	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{1 << 30}})
//	err = hv.WriteDisk(m.ID, m.Disks[0].ID, 4096, []byte("written by the guest"))
//	source, _ := sdk.As[sdk.Source](hv.Connect(sim.Settings{}))
//
// # How it tracks changes
//
// A disk has a generation and, beside its bytes, a table with the generation
// in which each 64 KiB block was last written. A snapshot closes a generation;
// a mark is the number of a closed one. While a snapshot is open, the first
// write to a block copies the old bytes and the old generation aside, so all
// disks of a snapshot show one moment and Changed is exact.
//
// # Locks
//
// One readers-writer lock guards a Hypervisor, across processes too: readers
// of a snapshot and writers of drafts share it, a guest's write and every
// change of state hold it alone.
package sim
