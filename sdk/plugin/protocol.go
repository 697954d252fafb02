package plugin

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// handshake tells a plugin that a host started it; it protects nothing.
// History of the protocol: 1 is the first.
var handshake = goplugin.HandshakeConfig{
	MagicCookieKey:   "HOLDFAST_PLUGIN",
	MagicCookieValue: "a host started this process",
}

// serviceName is what the one service is called among go-plugin's plugins.
const serviceName = "holdfast"

// protocols are the protocols that a process serves or a host speaks.
func protocols(s *server) map[int]goplugin.PluginSet {
	return map[int]goplugin.PluginSet{1: {serviceName: &protocol1{server: s}}}
}

// protocol1 joins protocol 1 to go-plugin. A host has no server.
type protocol1 struct {
	goplugin.NetRPCUnsupportedPlugin
	server *server
}

func (p *protocol1) GRPCServer(_ *goplugin.GRPCBroker, registrar *grpc.Server) error {
	pluginv1.RegisterPluginServiceServer(registrar, p.server)
	return nil
}

func (p *protocol1) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return pluginv1.NewPluginServiceClient(conn), nil
}

// serve is the plugin process once a host has started it.
func serve(a Author, d Description) int {
	// go-plugin exchanges os.Stderr; this is the one that the host reads.
	log := pluginLog(os.Stderr)
	slog.SetDefault(log)
	dir := os.Getenv(goplugin.EnvUnixSocketDir)
	if dir == "" || os.Getenv(clientCertificate) == "" {
		log.Error("a host gives its plugin a directory and a certificate; this one did not")
		return 1
	}
	s := newServer(a, d, dir, log)
	go endWith(os.Stdin)
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  handshake,
		VersionedPlugins: protocols(s),
		Logger:           hclog.NewNullLogger(),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, s.options()...)...)
		},
	})
	s.close()
	return 0
}

// endWith ends this process when the host's end of stdin is closed, which the
// kernel does for a host that died. Nothing is tidied up: a plugin keeps at
// the back-end what it needs.
func endWith(stdin io.Reader) {
	_, _ = io.Copy(io.Discard, stdin)
	os.Exit(0)
}

// dialOptions bound what a plugin may answer.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithDefaultCallOptions(
		grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage))}
}

var _ sdk.Platform = (*remote)(nil)
