package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func withMemory(o *Options) { o.Memory = true }

// What is read arrives whole, and does not pass through the socket.
func TestReadsThroughMemory(t *testing.T) {
	const size = 24<<20 + 12345
	m := randomMemory(size, 3)
	for at := 10 << 20; at < 20<<20; at += 4096 {
		m.data[at] = 1 // no zeroes, which are only named
	}
	c := dialServer(t, single("disk", m.export()), withMemory, func(o *Options) { o.Connections = 2 })
	var group sync.WaitGroup
	for g := range uint64(2 * places) { // more than there are places
		group.Go(func() {
			random := rand.New(rand.NewPCG(g, 3))
			for range 20 {
				off := random.Int64N(size)
				p := make([]byte, random.Int64N(min(3<<20, size-off)+1))
				if n, err := c.ReadAt(p, off); n != len(p) || err != nil {
					t.Errorf("read %d bytes at %d: %d, %v", len(p), off, n, err)
				}
				if !bytes.Equal(p, m.data[off:][:len(p)]) {
					t.Errorf("%d bytes at %d differ", len(p), off)
				}
			}
		})
	}
	group.Wait()
	one := make([]byte, 1<<20)
	before := c.Stats()
	for off := int64(10 << 20); off < 20<<20; off += int64(len(one)) {
		if _, err := c.ReadAt(one, off); err != nil || !bytes.Equal(one, m.data[off:][:len(one)]) {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	after := c.Stats()
	if read, received := after.ReadBytes-before.ReadBytes, after.ReceivedBytes-before.ReceivedBytes; read != 10<<20 || received > 64<<10 {
		t.Errorf("%d bytes read, %d of them through the socket", read, received)
	}
}

// Errors of the disk, writes, and reads beyond a place go on as ever.
func TestMemoryLeavesTheRestAsItIs(t *testing.T) {
	m := randomMemory(4<<20, 4)
	c := dialServer(t, single("disk", m.export()), withMemory)
	fresh := bytes.Repeat([]byte{7}, 2<<20)
	if _, err := c.WriteAt(fresh, 1000); err != nil {
		t.Fatal(err)
	}
	if err := c.Zero(1<<20, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4<<20)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.content()) {
		t.Errorf("the bytes differ, %v", err)
	}

	broken := dialServer(t, single("disk", Export{Size: 1 << 20, Reader: failing{}}), withMemory)
	for range 3 * places { // a place is free again after an error
		if _, err := broken.ReadAt(make([]byte, 4096), 0); err == nil {
			t.Fatal("a read that failed succeeded")
		}
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("no such sector") }

// Who cannot share memory is read through the socket.
func TestMemoryIsOptional(t *testing.T) {
	m := randomMemory(2<<20, 5)
	c := dialServer(t, single("disk", m.export())) // does not ask
	if c.links[0].memory != nil {
		t.Error("memory that nobody asked for")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := single("disk", m.export())
	go func() { _ = s.Serve(t.Context(), l) }()
	t.Cleanup(func() { _ = s.Close() })
	over, err := Dial(t.Context(), Options{Network: "tcp", Addr: l.Addr().String(), Export: "disk", Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	got := make([]byte, len(m.data))
	if _, err := over.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.data) || over.links[0].memory != nil {
		t.Errorf("over TCP: %v", err)
	}
}

// A server whose memory could go away while the client reads it, or which does
// as if it had some, is refused: touching such memory would end the process.
func TestRefusesMemoryThatMayGoAway(t *testing.T) {
	ack := appendOptReply(nil, optMemory, repAck, nil)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	unsealed := os.NewFile(uintptr(fd), "unsealed")
	defer unsealed.Close()
	for _, f := range []*os.File{file, unsealed} {
		if err := f.Truncate(memorySize); err != nil {
			t.Fatal(err)
		}
	}
	for name, answer := range map[string]func(*net.UnixConn) error{
		"not memory": func(c *net.UnixConn) error { return sendFile(c, ack, file) },
		"not sealed": func(c *net.UnixConn) error { return sendFile(c, ack, unsealed) },
		"file and no": func(c *net.UnixConn) error {
			return sendFile(c, appendOptReply(nil, optMemory, repErrUnsup, nil), file)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "nbd")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				s := script{t, conn}
				s.say(wireHello)
				s.hear(wireFlags)
				if opt, _, err := readOption(conn); opt != optStructured || err != nil {
					t.Errorf("%s, %v", opt, err)
				}
				_, _ = conn.Write(appendOptReply(nil, optStructured, repAck, nil))
				if opt, _, err := readOption(conn); opt != optMemory || err != nil {
					t.Errorf("%s, %v", opt, err)
				}
				if err := answer(conn.(*net.UnixConn)); err != nil {
					t.Error(err)
				}
				s.hearEnd()
			}()
			c, err := Dial(t.Context(), Options{Network: "unix", Addr: path, Export: "disk", Memory: true})
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("dial: %v, %v", c, err)
			}
			<-done
		})
	}
}

// placing is a placed read on the wire.
func placing(cookie uint64, off uint64, n, place uint32) []byte {
	var h [requestHeaderSize]byte
	requestHeader{command: cmdReadPlaced, cookie: cookie, offset: off, length: n}.put(&h)
	return binary.BigEndian.AppendUint32(h[:], place)
}

// FuzzServerPlaced: whatever a client says that shares memory, the session ends
// without touching bytes outside of the memory and of its disk.
func FuzzServerPlaced(f *testing.F) {
	f.Add(placing(1, 4096, 4096, 0))
	f.Add(append(placing(1, 0, 8192, memorySize-8192), placing(2, 0, 8192, memorySize-8191)...))
	f.Add(append(placing(1, 0, 1, 0xffffffff), placing(2, 8192, 1, 0)...))
	f.Add(append(placing(1, 0, placeSize+1, 0), placing(2, 0, 0, 0)...))
	f.Fuzz(func(t *testing.T, said []byte) {
		n := newSession(single("disk", guarded{t}.export()), newTape(said))
		n.structured, n.export = true, guarded{t}.export()
		n.memory = &sharedMemory{bytes: make([]byte, memorySize)}
		_ = n.transmit(t.Context())
	})
}

// FuzzClientPlaced: whatever a server answers that shares memory, a read ends,
// and one that succeeds has filled its buffer.
func FuzzClientPlaced(f *testing.F) {
	answer := func(typ uint16, content []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, magicStructured)
		b = binary.BigEndian.AppendUint16(b, chunkDone)
		b = binary.BigEndian.AppendUint16(b, typ)
		b = binary.BigEndian.AppendUint64(b, 1)
		b = binary.BigEndian.AppendUint32(b, uint32(len(content)))
		return append(b, content...)
	}
	f.Add(answer(chunkPlaced, holeAt(4096, 8)))
	f.Add(answer(chunkPlaced, holeAt(4097, 8)))
	f.Add(answer(chunkPlaced, holeAt(4096, 0xffffffff)))
	f.Add(answer(chunkHole, holeAt(4096, 8)))
	f.Add(answer(chunkData, dataAt(4096, make([]byte, 8))))
	f.Fuzz(func(t *testing.T, said []byte) {
		d := &details{size: 8192, structured: true, flags: flagHasFlags, minBlock: 1, maxBlock: maxPayload}
		l := newLink(newTape(said), d, new(tally), time.Minute, new(fate), func(error) {})
		l.mapped(&sharedMemory{bytes: make([]byte, memorySize)})
		read := newRequest(cmdRead, 4096, 8)
		read.buf = bytes.Repeat([]byte{0xa5}, 8)
		if err := l.submit(read, nil); err != nil || read.command != cmdReadPlaced {
			t.Fatal(read.command, err)
		}
		l.receive() // until the tape ends
		select {
		case err := <-read.done:
			if err == nil && bytes.Contains(read.buf, []byte{0xa5}) {
				t.Errorf("a read left bytes out: %x", read.buf)
			}
		default:
			t.Error("the read never ended")
		}
	})
}
