package gateway

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Both ends count the same, of sockets and of data, while connections are open
// and after they are closed.
func TestBothEndsCountTheSame(t *testing.T) {
	e := newEnds(t)
	c := e.client()
	s := e.begin(c)
	batch, ids := pages(s.ID(), 40, 64<<10)
	for range 2 { // the second time nothing of it is new
		if err := s.Put(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := read(t, c.Repository(e.store.id), ids); err != nil || len(got) != len(ids) {
		t.Fatalf("read %d records, %v", len(got), err)
	}
	size := int64(len(batch))
	near, far := c.Traffic(), e.server.Traffic("t1")
	if near.PutBytes != 2*size || near.ReadBytes != size {
		t.Errorf("the client put %d and read %d bytes, want %d and %d", near.PutBytes, near.ReadBytes, 2*size, size)
	}
	if far.PutBytes != near.PutBytes || far.NewBytes != size || far.ReadBytes != near.ReadBytes {
		t.Errorf("the server counts %+v, the client %+v", far, near)
	}
	const overhead = 64 << 10 // of handshakes, headers and TLS
	if near.SentBytes < 2*size || near.SentBytes > 2*size+overhead || near.ReceivedBytes < size || near.ReceivedBytes > size+overhead {
		t.Errorf("the sockets carried %+v for %d bytes", near, size)
	}
	if far.ReceivedBytes != near.SentBytes || far.SentBytes != near.ReceivedBytes {
		t.Errorf("the server's sockets count %+v, the client's %+v", far, near)
	}
	if other := e.server.Traffic("t2"); other != (Traffic{}) {
		t.Errorf("another tenant's traffic: %+v", other)
	}

	closed := e.server.DisconnectTenant("t1")
	within(t, func() bool { return e.server.Connections() == 0 })
	if after := e.server.Traffic("t1"); closed == 0 || after.ReceivedBytes < far.ReceivedBytes || after.SentBytes < far.SentBytes ||
		after.PutBytes != far.PutBytes || after.SentBytes > far.SentBytes+1<<10 {
		t.Errorf("with %d connections closed: %+v, before %+v", closed, after, far)
	}
	if _, err := s.Have(t.Context(), chunk.KindPage, ids); err != nil { // over a new connection
		t.Fatal(err)
	}
	if again := e.server.Traffic("t1"); again.ReceivedBytes <= far.ReceivedBytes+int64(len(ids))*int64(len(ids[0])) {
		t.Errorf("a new connection is not counted: %+v after %+v", again, far)
	}
}

// within waits for what happens soon.
func within(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it does not happen")
		}
	}
}
