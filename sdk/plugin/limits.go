package plugin

import (
	"os/user"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Limits bound what one process may use. A field that is zero sets no bound.
// A process never leaves a core file, which would hold its secrets.
type Limits struct {
	// MemoryBytes is how much memory the process may write to. The kernel
	// counts it by RLIMIT_DATA: RLIMIT_AS would also count what runtimes reserve
	// and never touch, which for Go is gigabytes and for V8 a terabyte. In a
	// cgroup it is memory.max too, which counts what its children use.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// OpenFiles is RLIMIT_NOFILE.
	OpenFiles int64 `json:"open_files,omitempty"`
	// Processes is how many processes and threads there may be: RLIMIT_NPROC
	// for a process with a user of its own, and pids.max in a cgroup. The kernel
	// counts RLIMIT_NPROC per user, so it is not set where others share the user.
	Processes int64 `json:"processes,omitempty"`
	// CPUPercent is how much CPU time it may take, 100 for one whole CPU; in a
	// cgroup only.
	CPUPercent int64 `json:"cpu_percent,omitempty"`
}

// User is whom a process runs as. Only root can choose another than its own.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary; none for a user of the process's own
	// Own means that nobody else has the user.
	Own bool
}

// LookupUser finds a user of this machine, by name or number, with its groups.
func LookupUser(name string) (*User, error) {
	found, err := user.Lookup(name)
	if _, numeric := strconv.ParseUint(name, 10, 32); err != nil && numeric == nil {
		found, err = user.LookupId(name)
	}
	if err != nil {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "there is no user %q on this machine", name).
			WithHint("make one, for example with: useradd --system --no-create-home --shell /usr/sbin/nologin NAME")
	}
	u := &User{}
	ids, err := found.GroupIds()
	if err != nil {
		return nil, sdk.Errorf(nil, sdk.FaultHost, "look up the groups of user %s: %v", name, err)
	}
	uid, uidErr := strconv.ParseUint(found.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(found.Gid, 10, 32)
	if uidErr != nil || gidErr != nil {
		return nil, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultHost, "user %s has no numbers on this system", name)
	}
	u.UID, u.GID = uint32(uid), uint32(gid)
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil && uint32(n) != u.GID {
			u.Groups = append(u.Groups, uint32(n))
		}
	}
	slices.Sort(u.Groups)
	return u, nil
}

// confinement is how closely one process is kept, and what of that did not
// work.
type confinement struct {
	user   *User
	limits Limits
	cgroup string // the directory that gets a cgroup for the process; "" for none
	cookie string // in the environment of the process and of what it starts

	guards atomic.Bool // what the process starts may outlive it

	own   string // the cgroup that was made
	unmet []string
}

// lacks notes what was not applied, and why. The process runs all the same.
func (c *confinement) lacks(what, why string) { c.unmet = append(c.unmet, what+": "+why) }
