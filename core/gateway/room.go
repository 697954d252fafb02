package gateway

import (
	"context"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// How much memory the bodies of requests in flight may need, and how long a
// request waits for its part before it is told to come back. A tenant's part is
// that of more batches at once than two cores can take in.
const (
	allRoom    = 384 << 20
	tenantRoom = 64 << 20
	roomWait   = 10 * time.Second
)

// rooms share the memory for bodies out: whatever a tenant sends, its part ends
// before that of the others does.
type rooms struct {
	all *semaphore.Weighted

	mu       sync.Mutex
	byTenant map[tenant.ID]*room
}

type room struct {
	*semaphore.Weighted
	users int // requests that have it or wait for it; guarded by rooms.mu
}

func newRooms() *rooms {
	return &rooms{all: semaphore.NewWeighted(allRoom), byTenant: map[tenant.ID]*room{}}
}

// take waits for n bytes.
func (r *rooms) take(ctx context.Context, t tenant.ID, n int64) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, roomWait)
	defer cancel()
	own := r.use(t)
	if own.Acquire(ctx, n) != nil {
		r.unuse(t, own)
		return nil, crowded()
	}
	if r.all.Acquire(ctx, n) != nil {
		own.Release(n)
		r.unuse(t, own)
		return nil, crowded()
	}
	return func() {
		r.all.Release(n)
		own.Release(n)
		r.unuse(t, own)
	}, nil
}

func crowded() error {
	p := NewProblem(http.StatusServiceUnavailable, CodeBusy, "too many requests are in flight at once").
		WithHint("it is repeated by itself; nothing is lost")
	p.RetryAfter = 1
	return p
}

func (r *rooms) use(t tenant.ID) *room {
	r.mu.Lock()
	defer r.mu.Unlock()
	own := r.byTenant[t]
	if own == nil {
		own = &room{Weighted: semaphore.NewWeighted(tenantRoom)}
		r.byTenant[t] = own
	}
	own.users++
	return own
}

func (r *rooms) unuse(t tenant.ID, own *room) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(r.byTenant, t)
	}
}
