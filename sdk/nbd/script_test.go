package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// script is one end of a connection whose other end is under test. Both ends
// are written byte by byte, so that the tests show what is on the wire.
type script struct {
	t    testing.TB
	conn net.Conn
}

// unhex reads hexadecimal digits; blanks and what follows a # do not count.
func unhex(t testing.TB, text string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pass lets time go by, in a bubble of synctest alone.
func pass(d time.Duration) {
	<-time.After(d)
}

// say sends bytes. Where the other end gave up already, they are lost.
func (s script) say(text string) {
	s.t.Helper()
	_, _ = s.conn.Write(unhex(s.t, text))
}

// hear fails the test unless exactly these bytes come next.
func (s script) hear(text string) {
	s.t.Helper()
	want := unhex(s.t, text)
	got := make([]byte, len(want))
	if n, err := io.ReadFull(s.conn, got); err != nil {
		s.t.Errorf("heard %x and then %v, want %x", got[:n], err, want)
		return
	}
	if !bytes.Equal(got, want) {
		s.t.Errorf("heard %x\n  want %x", got, want)
	}
}

// hearEnd fails the test unless the other end hangs up without another word.
func (s script) hearEnd() {
	s.t.Helper()
	if n, err := s.conn.Read(make([]byte, 1)); n != 0 || err == nil {
		s.t.Errorf("heard another byte, %v", err)
	}
}

// request reads one request without payload; a disconnect where none comes.
func (s script) request() requestHeader {
	s.t.Helper()
	var b [requestHeaderSize]byte
	if _, err := io.ReadFull(s.conn, b[:]); err != nil {
		return requestHeader{command: cmdDisconnect}
	}
	h, err := parseRequest(&b)
	if err != nil {
		s.t.Error(err)
	}
	return h
}

// chunk sends a structured reply chunk with the given content.
func (s script) chunk(cookie uint64, flags, typ uint16, content []byte) {
	b := binary.BigEndian.AppendUint32(nil, magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint32(b, uint32(len(content)))
	_, _ = s.conn.Write(append(b, content...))
}

func dataAt(off uint64, p []byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, off), p...)
}

func holeAt(off uint64, n uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, off), n)
}

func statusOf(id uint32, pairs ...uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, id)
	for _, p := range pairs {
		b = binary.BigEndian.AppendUint32(b, p)
	}
	return b
}

func errorOf(errno Errno, message string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(errno))
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	return append(b, message...)
}

const scriptSize = 1 << 20

// served gives a client of an export of 1 MiB with structured replies and
// base:allocation as context 7, whose server plays the script from there on.
// The server's end is closed when the script returns.
func served(t testing.TB, play func(script), change ...func(*details, *Options)) *Client {
	t.Helper()
	near, far := net.Pipe()
	d := &details{
		size: scriptSize, structured: true, contexts: map[string]uint32{ContextAllocation: 7},
		flags:    flagHasFlags | flagFlush | flagWriteZeroes | flagTrim,
		minBlock: 1, preferred: 4096, maxBlock: maxPayload,
	}
	var o Options
	for _, f := range change {
		f(d, &o)
	}
	c := &Client{details: d, tally: new(tally)}
	c.blocks.New = func() any { b := make([]byte, d.minBlock); return &b }
	c.adopt(&haggle{conn: near}, o)
	c.links[0].start()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = far.Close() }()
		play(script{t, far})
	}()
	t.Cleanup(func() {
		_ = c.Close()
		_ = far.Close()
		<-done
	})
	return c
}

// piped serves one connection and gives the client's end of it.
func piped(t testing.TB, s *Server) script {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.ServeConn(context.Background(), far) // how it ends is what the script sees
	}()
	t.Cleanup(func() {
		_ = near.Close()
		<-done
	})
	return script{t, near}
}
