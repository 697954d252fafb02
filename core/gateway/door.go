package gateway

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Limits bound the connections of a server. A field that is 0 has its default.
//
// A connection is a stranger's until a request on it has shown who calls, by a
// certificate or a token; from then on it counts for that tenant. So strangers
// compete with strangers for room, and a tenant with itself.
type Limits struct {
	// Connections in all.
	Connections int
	// Strangers at once. Beyond them the one that came first is closed: an agent
	// says who it is within one round trip, and who holds a connection open
	// without a word came before it.
	Strangers int
	// StrangersByAddress are those of one IPv4 address, or of one IPv6 network
	// of 64 bits. A new one beyond them is closed; agents behind one address that
	// all return at once try again.
	StrangersByAddress int
	// ByTenant are the connections of one tenant's agents and people.
	ByTenant int
}

// The defaults of Limits. A client has DefaultConnections, so one tenant may have
// dozens of sites, and one address some.
const (
	DefaultMaxConnections        = 4096
	DefaultMaxStrangers          = 1024
	DefaultMaxStrangersByAddress = 128
	DefaultMaxByTenant           = 256
)

func (l Limits) complete() Limits {
	set := func(n *int, fallback int) {
		if *n <= 0 {
			*n = fallback
		}
	}
	set(&l.Connections, DefaultMaxConnections)
	set(&l.Strangers, DefaultMaxStrangers)
	set(&l.StrangersByAddress, DefaultMaxStrangersByAddress)
	set(&l.ByTenant, DefaultMaxByTenant)
	return l
}

// door keeps account of the open connections of a server and holds them to its
// limits.
type door struct {
	limits Limits
	left   func(*line) // told once of each connection that had become a tenant's; mu is held

	mu        sync.Mutex
	lines     map[*line]struct{}
	strangers *list.List // of *line, the oldest first
	byAddress map[string]int
	byTenant  map[tenant.ID]int
}

func newDoor(l Limits, left func(*line)) *door {
	return &door{limits: l.complete(), left: left, lines: map[*line]struct{}{}, strangers: list.New(),
		byAddress: map[string]int{}, byTenant: map[tenant.ID]int{}}
}

// line is one connection below TLS: its bytes are counted, and whose it is turns
// out later.
type line struct {
	socket
	counted tally
	door    *door
	address string // as far as one person has it

	// Guarded by door.mu.
	place  *list.Element // among strangers; nil for one who is known
	tenant tenant.ID
	known  bool
	agent  string // "" for people
	closed bool
}

// Close closes the connection and makes room.
func (l *line) Close() error {
	l.door.leave(l)
	return l.Conn.Close()
}

// enter admits a connection, or says that there is no room for it. What has to
// give way to it is closed.
func (d *door) enter(conn net.Conn) (*line, bool) {
	l := &line{door: d, address: access.Neighbourhood(conn.RemoteAddr().String())}
	l.Conn, l.received, l.sent = conn, &l.counted.received, &l.counted.sent
	first, ok := d.place(l)
	if first != nil {
		_ = first.Close()
	}
	return l, ok
}

func (d *door) place(l *line) (first *line, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byAddress[l.address] >= d.limits.StrangersByAddress {
		return nil, false
	}
	if full := len(d.lines) >= d.limits.Connections; full || d.strangers.Len() >= d.limits.Strangers {
		oldest := d.strangers.Front()
		if oldest == nil {
			return nil, false // all the room is that of callers who are known
		}
		first = oldest.Value.(*line)
		d.forget(first)
	}
	d.lines[l] = struct{}{}
	l.place = d.strangers.PushBack(l)
	d.byAddress[l.address]++
	return first, true
}

// know makes a connection a tenant's. It answers false if that tenant has as many
// as it may have.
func (d *door) know(l *line, t tenant.ID, agent string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.closed || l.agent != "" && agent == "" {
		return true // it is an agent's, whoever else uses it
	}
	if l.known && l.tenant == t {
		l.agent = agent
		return true
	}
	if d.byTenant[t] >= d.limits.ByTenant {
		return false
	}
	d.forget(l)
	l.closed, l.known, l.tenant, l.agent = false, true, t, agent
	d.lines[l] = struct{}{}
	d.byTenant[t]++
	return true
}

// leave takes a connection out of the account.
func (d *door) leave(l *line) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !l.closed && l.known {
		d.left(l)
	}
	d.forget(l)
}

// forget takes a connection out; mu is held.
func (d *door) forget(l *line) {
	if l.closed {
		return
	}
	l.closed = true
	delete(d.lines, l)
	if l.place != nil {
		d.strangers.Remove(l.place)
		l.place = nil
		lower(d.byAddress, l.address)
	}
	if l.known {
		lower(d.byTenant, l.tenant)
	}
}

func lower[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}

// count says how many open connections are of a kind.
func (d *door) count(which func(*line) bool) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for l := range d.lines {
		if which(l) {
			n++
		}
	}
	return n
}

// close closes the connections of a kind.
func (d *door) close(which func(*line) bool) int {
	d.mu.Lock()
	var all []*line
	for l := range d.lines {
		if which(l) {
			all = append(all, l)
		}
	}
	d.mu.Unlock()
	for _, l := range all {
		_ = l.Close()
	}
	return len(all)
}

// doored is a listener whose connections have passed the door.
type doored struct {
	net.Listener
	door    *door
	refused func(net.Conn)
}

// Accept waits for a connection for which there is room. It closes the others
// without a word: a refusal over TLS would cost more than what it defends.
func (d doored) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l, ok := d.door.enter(conn); ok {
			return l, nil
		}
		d.refused(conn)
		_ = conn.Close()
	}
}

type lineKey struct{}

// withLine puts the connection into the context of its requests.
func withLine(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn() // closing it does not wait to say goodbye
	}
	if l, ok := c.(*line); ok {
		return context.WithValue(ctx, lineKey{}, l)
	}
	return ctx
}

// Recognise makes the connection of a request a tenant's. Whoever answers
// requests beside the wire, on the same listener, tells so who calls. It refuses
// a tenant with too many connections; the refused one should be closed with the
// answer. The context of a request that came otherwise is always fine.
func Recognise(ctx context.Context, t tenant.ID) error {
	return recognise(ctx, t, "")
}

func recognise(ctx context.Context, t tenant.ID, agent string) error {
	l, ok := ctx.Value(lineKey{}).(*line)
	if !ok || l.door.know(l, t, agent) {
		return nil
	}
	p := NewProblem(http.StatusTooManyRequests, CodeBusy, "the tenant has too many connections open at once").
		WithHint("the work continues as connections become free; give the agents fewer of them if this stays")
	p.RetryAfter = 2
	return p
}
