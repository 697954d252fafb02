package scenario

import (
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/holdfast-dr/holdfast/testenv/site"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// chunkSize is that of the repositories of a stack.
const chunkSize = 256 << 10

// sample is the most that a run reads of what did not change, of each disk, to
// find out whether the change tracker tells the truth.
const sample = 16 * chunkSize

// traffic is what the server counted, at its sockets and in its sessions.
type traffic struct {
	Received int64 `json:"received_bytes"`
	Sent     int64 `json:"sent_bytes"`
	Put      int64 `json:"put_bytes"`
	New      int64 `json:"new_bytes"`
	Read     int64 `json:"read_bytes"`
}

// count is what the server counts and charges.
type count struct {
	traffic
	used int64
}

func (l *lab) count() count {
	l.t.Helper()
	var now traffic
	l.must(l.ProviderJSON(l.t.Context(), &now, "tenant", "traffic", "--tenant", "demo"))
	return count{now, l.used()}
}

// since is what was counted after an earlier count.
func (c count) since(before count) count {
	return count{traffic{c.Received - before.Received, c.Sent - before.Sent, c.Put - before.Put, c.New - before.New, c.Read - before.Read},
		c.used - before.used}
}

// counted runs a job and returns its one machine's result, and what the server
// counted meanwhile. What the agent says that it sent is what arrived, to the
// byte; what was new is what is charged; and the sockets carried little more.
func (l *lab) counted(job string) (result, count) {
	l.t.Helper()
	before := l.count()
	r := l.backup(job).Machines[0]
	moved := l.count().since(before)
	if moved.Put != r.StoredBytes {
		l.t.Errorf("%s: the agent sent %d bytes of records, the server received %d", r.Kind, r.StoredBytes, moved.Put)
	}
	if moved.New != moved.used || moved.New > moved.Put {
		l.t.Errorf("%s: %d bytes of records were new of %d, %d are charged", r.Kind, moved.New, moved.Put, moved.used)
	}
	// Requests, ids that are asked for, TLS, reports of progress.
	if over := moved.Received - moved.Put; over < 0 || over > 128<<10+moved.Put/50 {
		l.t.Errorf("%s: %d bytes came in at the sockets for %d of records", r.Kind, moved.Received, moved.Put)
	}
	if over := moved.Sent - moved.Read; over < 0 || over > 128<<10+moved.Read/50 {
		l.t.Errorf("%s: %d bytes went out at the sockets for %d of records", r.Kind, moved.Sent, moved.Read)
	}
	return r, moved
}

// Each run moves what it has to and no more, by the counters of the NBD client
// on one side and of the server's sockets and sessions on the other.
func TestRunsMoveWhatChangedAndNoMore(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 256*mib)
	const allocated = 32 * mib
	l.noise(m, 0, 0, 24*mib, 1)
	l.noise(m, 0, 100*mib, 8*mib, 2)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--machine", "web")

	full, moved := l.counted("nightly")
	if full.SourceBytes != allocated || full.ReadBytes != allocated {
		t.Errorf("full: the disk's server sent %d bytes, the copy read %d, want the %d that are allocated", full.SourceBytes, full.ReadBytes, allocated)
	}
	if moved.Put < allocated || moved.Put > allocated+allocated/100 {
		t.Errorf("full: %d bytes of records for %d that do not compress", moved.Put, allocated)
	}

	same, moved := l.counted("nightly")
	if same.SourceBytes > sample || same.ReadBytes != sample {
		t.Errorf("unchanged: the disk's server sent %d bytes, the copy read %d, want the sample of %d, which may have holes", same.SourceBytes, same.ReadBytes, sample)
	}
	if moved.Put != 0 || moved.Received > 64<<10 {
		t.Errorf("unchanged: %d bytes of records, %d bytes in all came to the server", moved.Put, moved.Received)
	}

	const changed = 7 * chunkSize
	l.noise(m, 0, 3*mib, mib, 3)
	l.noise(m, 0, 200*mib+5, 4096, 4) // in a region that was empty
	l.noise(m, 0, 5*mib-100, 200, 5)  // in two chunks
	next, moved := l.counted("nightly")
	if next.SourceBytes < mib || next.SourceBytes > changed+sample || next.ReadBytes != changed+sample {
		t.Errorf("incremental: the disk's server sent %d bytes, the copy read %d, want the changed chunks, %d, and the sample of %d",
			next.SourceBytes, next.ReadBytes, changed, sample)
	}
	if moved.Put < mib || moved.Put > changed+64<<10 {
		t.Errorf("incremental: %d bytes of records came to the server, want the %d that changed", moved.Put, changed)
	}

	before := l.count()
	l.restoreDisk(next.Point, string(m.Disks[0].ID), "raw")
	back := l.count().since(before)
	if back.Put != 0 || back.Read < allocated || back.Read > allocated+allocated/50 || back.Sent < back.Read || back.Sent > back.Read+back.Read/50+128<<10 {
		t.Errorf("restore: the server counts %+v for a disk of %d bytes", back, allocated)
	}
}

// allocated is the data of a guest's disks by the word of qemu-img.
func (l *lab) allocated(g site.Guest) (bytes int64) {
	l.t.Helper()
	disks, err := g.Disks(l.t.Context())
	l.must(err)
	for _, path := range disks {
		out, err := exec.CommandContext(l.t.Context(), "qemu-img", "map", "--force-share", "--output=json", path).Output()
		l.must(err)
		var extents []struct {
			Length int64
			Data   bool
		}
		l.must(json.Unmarshal(out, &extents))
		for _, e := range extents {
			if e.Data {
				bytes += e.Length
			}
		}
	}
	return bytes
}
