package sdk

import "context"

// AbilityPools is the ability of Pools.
const AbilityPools Ability = "pools"

// Pools says what a back-end has, what a space uses of it, and who sees to it
// that the space does not use more.
type Pools interface {
	// Capacity is what the endpoint has in all.
	Capacity(ctx context.Context) (Capacity, error)

	// SetLimits makes a space, or changes its limits. The answer says which of
	// them the back-end enforces itself; the core enforces the others. Limits
	// below what is used are taken: they refuse what comes.
	SetLimits(ctx context.Context, op Op, limits Limits) (Enforced, error)

	// Usage is what a space uses now. An unknown space uses nothing.
	Usage(ctx context.Context, space Space) (Usage, error)
}

// Capacity is what an endpoint has.
type Capacity struct {
	Hosts []HostCapacity
	Pools []PoolCapacity
}

// HostCapacity is a host that runs machines.
type HostCapacity struct {
	Name        string
	CPUs        int
	MemoryBytes int64
	FreeBytes   int64 // memory that no machine has
}

// PoolCapacity is a storage pool or datastore.
type PoolCapacity struct {
	Name      string
	SizeBytes int64
	FreeBytes int64
}

// Limits bound a space. A zero is no limit.
type Limits struct {
	CPUs         int              // of all its machines that run
	MemoryBytes  int64            // of all its machines that run
	StorageBytes map[string]int64 // by pool
}

// Enforced says which limits the back-end keeps by itself: what would exceed one
// is ErrBusy there.
type Enforced struct {
	CPUs, Memory, Storage bool
}

// Usage is what a space uses.
type Usage struct {
	CPUs         int              // of machines that run
	MemoryBytes  int64            // of machines that run
	StorageBytes map[string]int64 // by pool, as allocated: replicas, layers, machines
}
