package nbd

import (
	"context"
	"net"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
)

// The bytes of a whole conversation, from either end.
const (
	wireHello      = "4e42444d41474943 49484156454f5054 0003"
	wireFlags      = "00000003"
	wireStructured = "49484156454f5054 00000008 00000000"
	wireAck8       = "0003e889045565a9 00000008 00000001 00000000"
	wireMeta       = `49484156454f5054 0000000a 0000001f
		00000004 6469736b 00000001 0000000f 626173653a616c6c6f636174696f6e  # disk, base:allocation`
	wireMetaReply = `0003e889045565a9 0000000a 00000004 00000013 00000001 626173653a616c6c6f636174696f6e
		0003e889045565a9 0000000a 00000001 00000000`
	wireGo      = "49484156454f5054 00000007 0000000e 00000004 6469736b 0002 0003 0002"
	wireGoReply = `0003e889045565a9 00000007 00000003 0000000c 0000 0000000000002000 05ed  # 8192 bytes
		0003e889045565a9 00000007 00000003 00000008 0002 6d656d6f7279                     # memory
		0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00001000 02000000       # block sizes
		0003e889045565a9 00000007 00000001 00000000`

	wireRead       = "25609513 0000 0000 0000000000000001 0000000000001000 00000004"
	wireReadReply  = "668e33ef 0001 0001 0000000000000001 0000000c 0000000000001000 64617461"
	wireHole       = "25609513 0000 0000 0000000000000002 0000000000000000 00000010"
	wireHoleReply  = "668e33ef 0001 0002 0000000000000002 0000000c 0000000000000000 00000010"
	wireStatus     = "25609513 0000 0007 0000000000000003 0000000000000000 00002000"
	wireStatReply  = "668e33ef 0001 0005 0000000000000003 00000014 00000001 00001000 00000003 00001000 00000000"
	wireWrite      = "25609513 0000 0001 0000000000000004 0000000000000001 00000002 6f6b"
	wireWriteReply = "67446698 00000000 0000000000000004"
	wireZero       = "25609513 0000 0006 0000000000000005 0000000000001000 00001000"
	wireZeroReply  = "67446698 00000000 0000000000000005"
	wireTrim       = "25609513 0000 0004 0000000000000006 0000000000001000 00001000"
	wireTrimReply  = "67446698 00000000 0000000000000006"
	wireFlush      = "25609513 0000 0003 0000000000000007 0000000000000000 00000000"
	wireFlushReply = "67446698 00000000 0000000000000007"
	wireFUA        = "25609513 0001 0001 0000000000000008 0000000000000000 00000001 78"
	wireFUAReply   = "67446698 00000000 0000000000000008"
	wireBye        = "25609513 0000 0002 0000000000000000 0000000000000000 00000000"
)

func TestServerSpeaksTheseBytes(t *testing.T) {
	m := newMemory(8192)
	copy(m.data[4096:], "data")
	s := piped(t, single("disk", m.export()))
	s.hear(wireHello)
	s.say(wireFlags)
	for _, exchange := range [][2]string{
		{wireStructured, wireAck8}, {wireMeta, wireMetaReply}, {wireGo, wireGoReply},
		{wireRead, wireReadReply}, {wireHole, wireHoleReply}, {wireStatus, wireStatReply},
		{wireWrite, wireWriteReply}, {wireZero, wireZeroReply}, {wireTrim, wireTrimReply},
		{wireFlush, wireFlushReply}, {wireFUA, wireFUAReply},
		// A read beyond the end.
		{"25609513 0000 0000 00000000000000aa 0000000000002000 00000001",
			"668e33ef 0001 8001 00000000000000aa 00000020 00000016 001a 6265796f6e642074686520656e64206f6620746865206469736b"},
	} {
		s.say(exchange[0])
		s.hear(exchange[1])
	}
	s.say(wireBye)
	s.hearEnd()
	if got := m.content(); string(got[:3]) != "xok" || m.flushed != 2 || m.zeroed != 1 || m.trimmed != 1 {
		t.Errorf("disk %q, %d flushes, %d zeroes, %d trims", got[:3], m.flushed, m.zeroed, m.trimmed)
	}
}

func TestClientSpeaksTheseBytes(t *testing.T) {
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := script{t, far}
		s.say(wireHello)
		s.hear(wireFlags)
		for _, exchange := range [][2]string{
			{wireStructured, wireAck8}, {wireMeta, wireMetaReply}, {wireGo, wireGoReply},
			{wireRead, wireReadReply}, {wireHole, wireHoleReply}, {wireStatus, wireStatReply},
			{wireWrite, wireWriteReply}, {wireZero, wireZeroReply}, {wireTrim, wireTrimReply},
			{wireFlush, wireFlushReply}, {wireFUA, wireFUAReply},
		} {
			s.hear(exchange[0])
			s.say(exchange[1])
		}
		s.hear(wireBye)
		s.hearEnd()
	}()
	c, err := Dial(t.Context(), Options{Export: "disk", MetaContexts: []string{ContextAllocation},
		Dialer: func(context.Context) (net.Conn, error) { return near, nil }})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := c.ReadAt(p, 4096); err != nil || string(p) != "data" {
		t.Errorf("read %q, %v", p, err)
	}
	hole := []byte("0123456789abcdef")
	if _, err := c.ReadAt(hole, 0); err != nil || !isZero(hole) {
		t.Errorf("read %q, %v", hole, err)
	}
	extents := collect(t, c.Extents(t.Context(), 0, 8192))
	if len(extents) != 2 || extents[0] != (sdk.Extent{Length: 4096, Zero: true}) {
		t.Errorf("extents %v", extents)
	}
	_, err = c.WriteAt([]byte("ok"), 1)
	for _, err := range []error{err, c.Zero(4096, 4096), c.Trim(4096, 4096), c.Flush()} {
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := c.WriteThrough([]byte("x"), 0); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	<-done
}

func TestServerRefusesOptionsInTheseBytes(t *testing.T) {
	s := piped(t, single("disk", newMemory(8192).export()))
	s.hear(wireHello)
	s.say(wireFlags)
	for _, exchange := range [][2]string{
		// LIST: ERR_POLICY with a message.
		{"49484156454f5054 00000003 00000000",
			"0003e889045565a9 00000003 80000002 00000016 6578706f72747320617265206e6f74206c6973746564"},
		// Extended headers, which it does not know: ERR_UNSUP.
		{"49484156454f5054 0000000b 00000000", "0003e889045565a9 0000000b 80000001 00000000"},
		// GO to an unknown export: ERR_UNKNOWN.
		{"49484156454f5054 00000007 00000007 00000001 78 0000", "0003e889045565a9 00000007 80000006 00000000"},
		// GO whose name is longer than its data: ERR_INVALID.
		{"49484156454f5054 00000007 00000007 000000ff 78 0000", "0003e889045565a9 00000007 80000003 00000000"},
		// SET_META_CONTEXT before structured replies: ERR_INVALID.
		{wireMeta, "0003e889045565a9 0000000a 80000003 00000000"},
		// STARTTLS without a certificate: ERR_POLICY.
		{"49484156454f5054 00000005 00000000", "0003e889045565a9 00000005 80000002 0000000b 6e6f20544c532068657265"},
		// ABORT: ACK, and goodbye.
		{"49484156454f5054 00000002 00000000", "0003e889045565a9 00000002 00000001 00000000"},
	} {
		s.say(exchange[0])
		s.hear(exchange[1])
	}
	s.hearEnd()
}

func TestOldClientGetsSimpleReplies(t *testing.T) {
	m := newMemory(8192)
	copy(m.data[4096:], "data")
	s := piped(t, single("disk", m.export()))
	s.hear(wireHello)
	s.say("00000001")                                    // fixed newstyle, but with the zeroes
	s.say("49484156454f5054 00000001 00000004 6469736b") // EXPORT_NAME disk
	s.hear("0000000000002000 056d")
	s.hear(string(make31("00000000")))
	for _, exchange := range [][2]string{
		{wireRead, "67446698 00000000 0000000000000001 64617461"},
		{wireHole, "67446698 00000000 0000000000000002 00000000000000000000000000000000"},
		{wireStatus, "67446698 00000016 0000000000000003"},
		{wireWrite, wireWriteReply},
	} {
		s.say(exchange[0])
		s.hear(exchange[1])
	}
}

func make31(word string) []byte {
	var b []byte
	for range 31 {
		b = append(b, word...)
	}
	return b
}
