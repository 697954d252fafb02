package host

import (
	"context"
	"fmt"
	"runtime"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// Process is a plugin that runs for one endpoint, wherever it does.
// *plugin.Process is one on this machine.
type Process interface {
	// Platform is the author's platform. It lasts as long as the process.
	Platform() sdk.Platform
	// Describe is what the plugin says of itself.
	Describe() plugin.Description
	// Done is closed when the process has ended, or cannot be reached any more.
	Done() <-chan struct{}
	// Close ends it, and returns when nothing of it is left here.
	Close() error
}

var _ Process = (*plugin.Process)(nil)

// Start says what a Starter starts.
type Start struct {
	Endpoint Endpoint
	// Enabled is the binary that is pinned for an architecture (GOARCH): no
	// other may be run there.
	Enabled func(ctx context.Context, arch string) (Enabled, error)
	Launch  plugin.Launch // complete but for the binary
}

// Starter starts plugins somewhere. ctx bounds the start alone. A start that
// fails leaves nothing running. Whoever starts a binary on another machine
// compares the checksum there.
type Starter interface {
	Start(ctx context.Context, s Start) (Process, error)
}

// onThisMachine is the Starter that starts plugins as children of the host.
type onThisMachine struct{}

func (onThisMachine) Start(ctx context.Context, s Start) (Process, error) {
	program, err := s.Enabled(ctx, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	if program.Path == "" {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "the program of plugin %s is on workers only", program.Plugin).
			WithHint("name one when the endpoint is added: --worker NAME; or install the plugin here, and enable it")
	}
	s.Launch.Path, s.Launch.SHA256 = program.Path, program.SHA256
	p, err := plugin.Start(ctx, s.Launch)
	if err != nil {
		return nil, err // a nil *plugin.Process would not be a nil Process
	}
	return p, nil
}

// starter is who starts the process of an endpoint.
func (h *Host) starter(e Endpoint) (Starter, error) {
	if h.options.Starter == nil {
		return onThisMachine{}, nil
	}
	starter, err := h.options.Starter(e)
	if err != nil {
		return nil, fmt.Errorf("choose where plugin %s runs for endpoint %s: %w", e.Plugin, e.Name, err)
	}
	if starter == nil {
		starter = onThisMachine{}
	}
	return starter, nil
}
