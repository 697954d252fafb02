package host

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"time"
)

// Endpoint is one back-end that a plugin drives: a libvirt host, a vCenter.
type Endpoint struct {
	ID     string
	Name   string // what people call it; unique
	Plugin string // such as "libvirt"
	// Settings are JSON that satisfies the plugin's schema. They hold secrets
	// in the clear: a Store seals them at rest.
	Settings json.RawMessage
	// Workers are the names of the workers that may run the plugin, tried in
	// this order; none means that it runs here.
	Workers []string
}

// sameProcess says whether one process serves both states of an endpoint.
func (e Endpoint) sameProcess(other Endpoint) bool {
	return e.Plugin == other.Plugin && bytes.Equal(e.Settings, other.Settings) && slices.Equal(e.Workers, other.Workers)
}

// Enabled is a plugin whose binary an operator trusts. There is one for each
// architecture; SHA256 pins the binary.
type Enabled struct {
	Plugin      string
	Arch        string // as GOARCH
	Path        string
	SHA256      string // lower-case hex
	Version     string
	Protocol    int
	Description json.RawMessage // a plugin.Description
	EnabledAt   time.Time
	Policy      PluginPolicy // how closely its processes are kept
}

// Store keeps endpoints and enabled plugins. Each method is one transaction.
// What does not exist is an error that wraps sdk.ErrNotFound.
type Store interface {
	// Endpoint finds an endpoint by id.
	Endpoint(ctx context.Context, id string) (Endpoint, error)
	// Endpoints lists all, by name.
	Endpoints(ctx context.Context) ([]Endpoint, error)
	// PutEndpoint makes or changes an endpoint. A name that another endpoint
	// has is sdk.ErrInvalid.
	PutEndpoint(ctx context.Context, e Endpoint) error
	// DeleteEndpoint is nil if there is none.
	DeleteEndpoint(ctx context.Context, id string) error

	// Plugin finds the enabled binary of a plugin.
	Plugin(ctx context.Context, name, arch string) (Enabled, error)
	// Plugins lists all, by name and architecture.
	Plugins(ctx context.Context) ([]Enabled, error)
	// PutPlugin enables a binary in place of the one before.
	PutPlugin(ctx context.Context, p Enabled) error
	// DeletePlugin disables it; nil if it was not enabled.
	DeletePlugin(ctx context.Context, name, arch string) error
}
