package nbd

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// dialScript dials a server that plays a script.
func dialScript(t testing.TB, ctx context.Context, play func(script)) (*Client, error) {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = far.Close() }()
		play(script{t, far})
	}()
	c, err := Dial(ctx, Options{Export: "disk", MetaContexts: []string{ContextAllocation},
		Dialer: func(context.Context) (net.Conn, error) { return near, nil }})
	if err == nil {
		_ = c.Close()
	}
	_ = near.Close()
	<-done
	return c, err
}

func TestStrangeHandshakes(t *testing.T) {
	options := func(replies ...string) func(script) {
		return func(s script) {
			s.say(wireHello)
			s.hear(wireFlags)
			asked := []string{wireStructured, wireMeta, wireGo}
			for i, r := range replies {
				s.hear(asked[i])
				s.say(r)
			}
		}
	}
	goReply := func(infos string) string { return infos + "0003e889045565a9 00000007 00000001 00000000" }
	const export = "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000002000 0001"
	for name, k := range map[string]struct {
		play func(script)
		want error
	}{
		"not an NBD server":      {func(s script) { s.say("485454502f312e31 2032303020 4f4b0d0a 00") }, ErrProtocol},
		"oldstyle":               {func(s script) { s.say("4e42444d41474943 0000420281861253 0003") }, sdk.ErrUnsupported},
		"silence and goodbye":    {func(s script) {}, sdk.ErrUnavailable},
		"reply magic":            {options("0003e889045565aa 00000008 00000001 00000000"), ErrProtocol},
		"reply to another":       {options("0003e889045565a9 00000007 00000001 00000000"), ErrProtocol},
		"huge reply":             {options("0003e889045565a9 00000008 00000001 7fffffff"), ErrProtocol},
		"reply cut":              {options("0003e889045565a9 00000008 80000001 00000010 00"), sdk.ErrUnavailable},
		"context unasked":        {options(wireAck8, "0003e889045565a9 0000000a 00000004 00000006 00000001 7878"), ErrProtocol},
		"context without id":     {options(wireAck8, "0003e889045565a9 0000000a 00000004 00000002 0000"), ErrProtocol},
		"go without size":        {options(wireAck8, wireMetaReply, goReply("")), ErrProtocol},
		"negative size":          {options(wireAck8, wireMetaReply, goReply("0003e889045565a9 00000007 00000003 0000000c 0000 8000000000000000 0001")), ErrProtocol},
		"export info cut":        {options(wireAck8, wireMetaReply, goReply("0003e889045565a9 00000007 00000003 00000004 0000 0000")), ErrProtocol},
		"info of nothing":        {options(wireAck8, wireMetaReply, goReply(export+"0003e889045565a9 00000007 00000002 00000000")), ErrProtocol},
		"block size zero":        {options(wireAck8, wireMetaReply, goReply(export+"0003e889045565a9 00000007 00000003 0000000e 0003 00000000 00001000 02000000")), ErrProtocol},
		"block size of three":    {options(wireAck8, wireMetaReply, goReply(export+"0003e889045565a9 00000007 00000003 0000000e 0003 00000003 00001000 02000000")), ErrProtocol},
		"block size too large":   {options(wireAck8, wireMetaReply, goReply(export+"0003e889045565a9 00000007 00000003 0000000e 0003 00100000 00100000 02000000")), ErrProtocol},
		"block sizes reversed":   {options(wireAck8, wireMetaReply, goReply(export+"0003e889045565a9 00000007 00000003 0000000e 0003 00001000 00001000 00000200")), ErrProtocol},
		"no such export":         {options(wireAck8, wireMetaReply, "0003e889045565a9 00000007 80000006 00000000"), sdk.ErrNotFound},
		"forbidden":              {options(wireAck8, wireMetaReply, "0003e889045565a9 00000007 80000002 00000003 6e6f21"), sdk.ErrDenied},
		"shutting down":          {options(wireAck8, wireMetaReply, "0003e889045565a9 00000007 80000007 00000000"), sdk.ErrUnavailable},
		"TLS demanded":           {options("0003e889045565a9 00000008 80000005 00000000"), sdk.ErrDenied},
		"good":                   {options(wireAck8, wireMetaReply, goReply(export)), nil},
		"good, unknown info":     {options(wireAck8, wireMetaReply, goReply(export+"0003e889045565a9 00000007 00000003 00000004 0063 0000")), nil},
		"good, no meta contexts": {options(wireAck8, "0003e889045565a9 0000000a 80000001 00000000", goReply(export)), nil},
		"good, by name": {func(s script) {
			options(wireAck8, wireMetaReply, "0003e889045565a9 00000007 80000001 00000000")(s)
			s.hear("49484156454f5054 00000001 00000004 6469736b")
			s.say("0000000000002000 0001")
		}, nil},
		"good, not fixed": {func(s script) {
			s.say("4e42444d41474943 49484156454f5054 0000")
			s.hear("00000000 49484156454f5054 00000001 00000004 6469736b")
			s.say("0000000000002000 0001" + strings.Repeat("00", 124))
		}, nil},
		"by name, refused": {func(s script) {
			s.say("4e42444d41474943 49484156454f5054 0000")
			s.hear("00000000 49484156454f5054 00000001 00000004 6469736b")
		}, sdk.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := dialScript(t, t.Context(), func(s script) {
				k.play(s)
				if k.want == nil {
					s.hear(wireBye)
				}
			})
			if !errors.Is(err, k.want) {
				t.Errorf("got %v, want %v", err, k.want)
			}
			if err == nil && c.Size() != 8192 {
				t.Errorf("size %d", c.Size())
			}
		})
	}
}

func TestEndlessRepliesEndTheHandshake(t *testing.T) {
	_, err := dialScript(t, t.Context(), func(s script) {
		s.say(wireHello)
		s.hear(wireFlags + wireStructured)
		s.say(wireAck8)
		s.hear(wireMeta)
		s.say("0003e889045565a9 0000000a 00000001 00000000")
		s.hear(wireGo)
		info := unhex(t, "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000002000 0001")
		for {
			if _, err := s.conn.Write(info); err != nil {
				return
			}
		}
	})
	if !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v", err)
	}
}

func TestDialGivesUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := dialScript(t, t.Context(), func(s script) {
			s.say(wireHello)
			s.hear(wireFlags + wireStructured)
			s.hearEnd()
		})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, sdk.ErrUnavailable) || time.Since(start) != DefaultTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestDialFollowsItsContext(t *testing.T) {
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := dialScript(t, ctx, func(s script) {
		s.say(wireHello)
		s.hear(wireFlags + wireStructured)
		cancel(reason)
		s.hearEnd()
	})
	if !errors.Is(err, reason) {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsHaveToShowOneDisk(t *testing.T) {
	size := 4096
	s := &Server{Exports: func(string) (Export, error) {
		e := newMemory(size).export()
		size += 4096
		return e, nil
	}}
	s.MaxConnections = 3
	_, err := Dial(t.Context(), Options{Network: "unix", Addr: listen(t, s), Connections: 2})
	if !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v", err)
	}
}

func TestBadAddresses(t *testing.T) {
	if _, err := Open(t.Context(), sdk.Address{Network: "udp"}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("network: %v", err)
	}
	if _, err := Open(t.Context(), sdk.Address{Network: "unix", Addr: t.TempDir() + "/none"}); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("no socket: %v", err)
	}
}
