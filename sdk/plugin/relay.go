package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// Bounds of what comes from the other machine.
const (
	// relayedService is what a relayed call begins with: the contract's own
	// services of every version, and nothing else that a process serves.
	relayedService = "/holdfast.plugin."
	// maxRelayedCalls is how many calls one connection has open.
	maxRelayedCalls = 1000
	// maxLearned is how many open disks a relay knows; beyond it the oldest is
	// forgotten.
	maxLearned = 4 * maxOpenDisks
)

// Relay is a plugin process whose host is on another machine: calls come over
// connections that are handed to Serve, and go to the process as they are. The
// settings, which hold secrets, pass through unread. Of the answers, a relay
// reads where disks are, for it dials those addresses and no others.
type Relay struct {
	pid      int
	protocol int
	calls    *grpc.ClientConn // to the process
	server   *grpc.Server
	arrivals *arrivals
	done     <-chan struct{}
	tidy     chan struct{}
	stop     func()
	closing  sync.Once
	guards   *atomic.Bool // see Author

	mutex sync.Mutex             // guards the fields below
	disks map[string]sdk.Address // by handle
	order []string               // handles as they were learned
}

// StartRelay starts a program after checking its checksum; it is configured by
// a call that its host makes. Settings, Log and CallLimit of the launch do not
// count. What the process says is written to out in whole lines. ctx bounds
// the start alone.
func StartRelay(ctx context.Context, l Launch, out io.Writer) (*Relay, error) {
	file, err := verified(l.Path, l.SHA256)
	if err != nil {
		return nil, err
	}
	var started atomic.Pointer[program]
	shared := &sharedLines{to: out, flow: newFlow(func(int) {})}
	client := newClient(l, file, relayProtocols(), output{shared.source(), shared.source(), shared.source()}, &started)
	stopWaiting := context.AfterFunc(ctx, func() { kill(client, &started, 0) })
	calls, err := dispenseConn(client)
	if !stopWaiting() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		kill(client, &started, 0)
		_ = file.Close()
		return nil, fmt.Errorf("start plugin %s: %w", filepath.Base(l.Path), err)
	}
	running := started.Load()
	r := &Relay{
		pid: running.command.Process.Pid, protocol: client.NegotiatedVersion(), calls: calls,
		arrivals: newArrivals(), done: running.done, tidy: make(chan struct{}),
		stop:   func() { kill(client, &started, closeGrace) },
		guards: &running.keep.guards,
		disks:  make(map[string]sdk.Address),
	}
	r.server = grpc.NewServer(
		grpc.ForceServerCodecV2(unread{}), grpc.UnknownServiceHandler(r.forward),
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage), grpc.MaxConcurrentStreams(maxRelayedCalls),
	)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = r.server.Serve(r.arrivals) // ends when it is stopped
	}()
	go func() {
		defer close(r.tidy)
		<-running.done
		client.Kill() // releases what go-plugin holds for it
		r.server.Stop()
		<-served
	}()
	return r, nil
}

// relayProtocols are the protocols that a relay lets through: those that this
// package speaks.
func relayProtocols() map[int]goplugin.PluginSet {
	sets := make(map[int]goplugin.PluginSet)
	for version := range protocols(nil) {
		sets[version] = goplugin.PluginSet{serviceName: &bareConn{}}
	}
	return sets
}

// bareConn dispenses the connection itself.
type bareConn struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (*bareConn) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return nil }

func (*bareConn) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

func dispenseConn(client *goplugin.Client) (*grpc.ClientConn, error) {
	conn, err := client.Client()
	if err != nil {
		return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "%v", err)
	}
	raw, err := conn.Dispense(serviceName)
	if err != nil {
		return nil, sdk.Errorf(nil, sdk.FaultPlugin, "%v", err)
	}
	return raw.(*grpc.ClientConn), nil
}

// PID is the number of the process.
func (r *Relay) PID() int { return r.pid }

// Protocol is the version that the process speaks.
func (r *Relay) Protocol() int { return r.protocol }

// Done is closed when the process has ended.
func (r *Relay) Done() <-chan struct{} { return r.done }

// Close ends the process: politely, and after three seconds otherwise.
func (r *Relay) Close() error {
	r.closing.Do(r.stop)
	<-r.tidy
	return nil
}

// Serve takes calls from a connection, which it owns from now on. It does not
// wait for them.
func (r *Relay) Serve(conn net.Conn) { r.arrivals.add(conn) }

// Dial connects to the bytes of a disk that the process has opened, by the
// handle that it gave.
func (r *Relay) Dial(ctx context.Context, handle string) (net.Conn, error) {
	r.mutex.Lock()
	address, ok := r.disks[handle]
	r.mutex.Unlock()
	if !ok {
		return nil, sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "the plugin has no such disk open")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, address.Network, address.Addr)
	if err != nil {
		return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "dial a disk: %v", err)
	}
	return conn, nil
}

// forward passes one call on. Every call of the contract has one request, and
// one answer or many.
func (r *Relay) forward(_ any, in grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(in)
	if !ok || !strings.HasPrefix(method, relayedService) {
		return status.Error(codes.Unimplemented, "not a call of the contract")
	}
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	if pairs, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, pairs.Copy())
	}
	var request message
	if err := in.RecvMsg(&request); err != nil {
		return err
	}
	out, err := r.calls.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodecV2(unread{}))
	if err != nil {
		return err
	}
	// The stream's own error comes with the answer.
	if err := out.SendMsg(&request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := out.CloseSend(); err != nil {
		return err
	}
	for {
		var answer message
		switch err := out.RecvMsg(&answer); {
		case errors.Is(err, io.EOF):
			in.SetTrailer(out.Trailer())
			r.closed(method, request)
			return nil
		case err != nil:
			in.SetTrailer(out.Trailer())
			return err
		}
		r.learn(method, answer)
		if err := in.SendMsg(&answer); err != nil {
			return err
		}
	}
}

// learn remembers where a disk is that the process has just opened.
func (r *Relay) learn(method string, answer message) {
	var opened interface {
		proto.Message
		GetDisk() *pluginv1.OpenedDisk
	}
	switch method {
	case pluginv1.PluginService_Describe_FullMethodName:
		r.described(answer)
		return
	case pluginv1.PluginService_OpenDisk_FullMethodName:
		opened = &pluginv1.OpenDiskResponse{}
	case pluginv1.PluginService_OpenDraftDisk_FullMethodName:
		opened = &pluginv1.OpenDraftDiskResponse{}
	case pluginv1.PluginService_OpenPoint_FullMethodName:
		opened = &pluginv1.OpenPointResponse{}
	case pluginv1.PluginService_OpenPointDraftDisk_FullMethodName:
		opened = &pluginv1.OpenPointDraftDiskResponse{}
	default:
		return
	}
	// An answer that breaks the contract is for the host to refuse.
	if proto.Unmarshal(answer.bytes, opened) != nil {
		return
	}
	handle := opened.GetDisk().GetHandle()
	address, err := fromAddress(opened.GetDisk().GetAddress())
	if err != nil || handle == "" || len(handle) > maxID {
		return
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if _, known := r.disks[handle]; !known {
		r.order = append(r.order, handle)
	}
	r.disks[handle] = address
	for len(r.order) > maxLearned {
		delete(r.disks, r.order[0])
		r.order = r.order[1:]
	}
}

// described learns whether what the process starts may outlive it.
func (r *Relay) described(answer message) {
	var resp pluginv1.DescribeResponse
	if proto.Unmarshal(answer.bytes, &resp) != nil {
		return
	}
	if d, err := parseDescription(resp.GetJson()); err == nil {
		r.guards.Store(d.Guards)
	}
}

// closed forgets a disk that the process has just closed.
func (r *Relay) closed(method string, request message) {
	if method != pluginv1.PluginService_CloseDisk_FullMethodName {
		return
	}
	var closed pluginv1.CloseDiskRequest
	if proto.Unmarshal(request.bytes, &closed) != nil {
		return
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	delete(r.disks, closed.GetHandle()) // its place in order is given up with time
}

// message is a message that nobody has looked into.
type message struct{ bytes []byte }

// unread is the codec of messages that are passed on as they are.
type unread struct{}

// Marshal gives the bytes.
func (unread) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*message)
	if !ok {
		return nil, fmt.Errorf("relay a %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(m.bytes)}, nil
}

// Unmarshal takes the bytes.
func (unread) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*message)
	if !ok {
		return fmt.Errorf("relay a %T", v)
	}
	m.bytes = data.Materialize()
	return nil
}

// Name is that of the codec in which hosts and plugins speak.
func (unread) Name() string { return "proto" }

// arrivals is a listener of connections that were made elsewhere.
type arrivals struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newArrivals() *arrivals {
	return &arrivals{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (a *arrivals) add(conn net.Conn) {
	select {
	case a.conns <- conn:
	case <-a.closed:
		_ = conn.Close()
	}
}

// Accept waits for the next connection.
func (a *arrivals) Accept() (net.Conn, error) {
	select {
	case conn := <-a.conns:
		return conn, nil
	case <-a.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (a *arrivals) Close() error {
	a.once.Do(func() { close(a.closed) })
	return nil
}

// Addr is no address.
func (a *arrivals) Addr() net.Addr { return &net.UnixAddr{Name: "relay", Net: "unix"} }

// sharedLines lets several sources write whole lines to one writer.
type sharedLines struct {
	flow  *flow      // a flood costs the process time
	mutex sync.Mutex // one line at a time
	to    io.Writer
}

func (s *sharedLines) source() io.Writer { return &lineSource{shared: s} }

// lineSource keeps what is not a whole line yet.
type lineSource struct {
	shared *sharedLines
	mutex  sync.Mutex // guards rest
	rest   []byte
}

// Write takes what a process wrote. A longer line than the host keeps is cut.
func (s *lineSource) Write(p []byte) (int, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	n := len(p)
	s.shared.flow.pass(n)
	for {
		line, after, whole := bytes.Cut(p, []byte{'\n'})
		s.rest = append(s.rest, line[:min(len(line), maxLogLine-len(s.rest))]...)
		if !whole {
			return n, nil
		}
		s.shared.mutex.Lock()
		_, err := s.shared.to.Write(append(s.rest, '\n'))
		s.shared.mutex.Unlock()
		if err != nil {
			return n, nil // who listened is gone; the process goes on
		}
		s.rest, p = s.rest[:0], after
	}
}
