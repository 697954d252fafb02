package plugin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// Attachment is how a process behind a Relay is reached. Its connections are
// private to the two ends: calls carry the settings in the clear.
type Attachment struct {
	Plugin string // its name
	PID    int    // on its machine
	// Calls connects to Relay.Serve. It is called again when a connection was
	// lost and the process lives.
	Calls func(context.Context) (net.Conn, error)
	// Disk connects to what Relay.Dial connects to.
	Disk func(ctx context.Context, handle string) (net.Conn, error)
	// Log is what the relay writes, and ends soon after the process. Attach
	// closes it.
	Log io.ReadCloser
	// Ended is closed when the process has ended or cannot be reached any more.
	Ended <-chan struct{}
	// Lost says why the machine cannot be reached any more; nil while it can.
	Lost func() error
	// End asks for the end of the process, and closes Ended.
	End func()
}

// Attach makes a Process of one that runs behind a Relay: it checks the
// settings and has the plugin connect to its endpoint. Path, SHA256 and RunDir
// of the launch do not count. ctx bounds the start alone; after an error the
// process is being ended.
func Attach(ctx context.Context, at Attachment, l Launch) (*Process, error) {
	secrets := new(secretText)
	log := l.log().With("plugin", at.Plugin)
	conn, err := grpc.NewClient("passthrough:///"+at.Plugin, append(dialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the connection is private
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return at.Calls(ctx) }),
		grpc.WithIdleTimeout(0), grpc.WithDisableServiceConfig(), grpc.WithNoProxy())...)
	if err != nil {
		at.End()
		_ = at.Log.Close()
		return nil, fmt.Errorf("attach to plugin %s: %w", at.Plugin, err)
	}
	lines := &logLines{log: log, secrets: secrets, level: slog.LevelWarn, keep: l.Lines}
	var logging sync.WaitGroup
	logging.Go(func() { _, _ = io.Copy(lines, at.Log) })
	logged := func() { // the last lines of an ended process are waited for
		late := time.AfterFunc(drainLimit, func() { _ = at.Log.Close() })
		logging.Wait()
		if late.Stop() {
			_ = at.Log.Close()
		}
	}
	if at.Lost == nil {
		at.Lost = func() error { return nil }
	}
	p, err := configure(ctx, pluginv1.NewPluginServiceClient(conn), l, secrets)
	if err != nil {
		at.End()
		_ = conn.Close()
		logged()
		return nil, fmt.Errorf("start plugin %s: %w", at.Plugin, err)
	}
	tidy := make(chan struct{})
	p.pid, p.done, p.tidy = at.PID, at.Ended, tidy
	p.platform.gone, p.platform.dialDisk, p.platform.lost = at.Ended, at.Disk, at.Lost
	asked := make(chan struct{})
	p.stop = func() { close(asked); at.End() }
	log = log.With("pid", p.pid)
	log.Info("plugin started", "version", p.description.Version)
	go func() {
		defer close(tidy)
		<-at.Ended
		_ = conn.Close() // nothing is at its other end
		logged()
		select {
		case <-asked:
			log.Info("plugin ended")
		default:
			if err := p.Lost(); err != nil {
				log.Warn("plugin lost", "err", err)
			} else {
				log.Warn("plugin ended by itself")
			}
		}
	}()
	return p, nil
}
