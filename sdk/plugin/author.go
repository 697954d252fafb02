package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Protocol is the newest protocol that this package speaks.
const Protocol = 1

// Author is a plugin as its author writes it.
type Author struct {
	Name    string // of the back-end: the binary is holdfast-plugin-NAME
	Version string
	// Config is a pointer to a struct, the zero or default configuration. Its
	// fields have the tags json, help, required:"true", secret:"true" and
	// enum:"a,b". nil: nothing can be configured.
	Config any
	// HostUser says that the plugin needs the user that its host runs as, such
	// as for a socket that only root may open. Otherwise a host that runs as
	// root gives each endpoint's process a user of its own, which may do
	// nothing; operators can decide otherwise.
	HostUser bool
	// Guards says that processes which the plugin starts may outlive it on
	// purpose, such as one that thaws a guest when the plugin died. A host ends
	// the others.
	Guards bool
	// Type is a value of the type that Open returns, a nil pointer will do. Its
	// methods say which abilities the plugin can have at most.
	Type sdk.Platform
	// Open connects to the endpoint that the configuration names. config is a
	// pointer to a fresh copy of Config, filled in.
	Open func(ctx context.Context, config any) (sdk.Platform, error)
}

// Description says what a plugin is, without an endpoint.
type Description struct {
	Name      string        `json:"name"`
	Version   string        `json:"version"`
	Protocol  int           `json:"protocol"`
	Abilities []sdk.Ability `json:"abilities"` // at most; Probe says what works
	Config    Schema        `json:"config"`
	HostUser  bool          `json:"host_user,omitempty"` // see Author
	Guards    bool          `json:"guards,omitempty"`    // see Author
}

// Describe is what the program prints when it is run with the argument
// "describe".
func (a Author) Describe() (Description, error) {
	if a.Name == "" || a.Version == "" || a.Open == nil {
		return Description{}, fmt.Errorf("describe plugin %q: an author needs Name, Version and Open", a.Name)
	}
	schema, err := SchemaOf(a.Config)
	if err != nil {
		return Description{}, fmt.Errorf("describe plugin %q: %w", a.Name, err)
	}
	return Description{
		Name: a.Name, Version: a.Version, Protocol: Protocol,
		Abilities: sdk.AbilitiesOfType(a.Type), Config: schema, HostUser: a.HostUser, Guards: a.Guards,
	}, nil
}

// open fills in a copy of the configuration and opens the platform.
func (a Author) open(ctx context.Context, settings json.RawMessage) (sdk.Platform, error) {
	var config any
	if a.Config != nil {
		fresh := reflect.New(reflect.TypeOf(a.Config).Elem())
		fresh.Elem().Set(reflect.ValueOf(a.Config).Elem())
		config = fresh.Interface()
		schema, err := SchemaOf(a.Config)
		if err != nil {
			return nil, err
		}
		if err := schema.Validate(settings); err != nil {
			return nil, err
		}
		if len(settings) > 0 {
			if err := json.Unmarshal(settings, config); err != nil {
				// The text of the error may quote a secret.
				return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "the settings do not fit the plugin's configuration")
			}
		}
	}
	platform, err := a.Open(ctx, config)
	if err != nil {
		return nil, err
	}
	if platform == nil {
		return nil, sdk.Errorf(nil, sdk.FaultPlugin, "plugin %s opened nothing", a.Name)
	}
	return platform, nil
}

// Serve is the main function of a plugin; it does not return. With the
// argument "describe" it prints the plugin's Description. Otherwise it expects
// to be started by a host, and ends when the host does.
func Serve(a Author) {
	os.Exit(run(a, os.Args[1:], os.Stdout, os.Stderr))
}

func run(a Author, args []string, stdout, stderr io.Writer) int {
	d, err := a.Describe()
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	switch {
	case len(args) == 1 && args[0] == "describe":
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(d); err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return 0
	case len(args) == 0 && os.Getenv(handshake.MagicCookieKey) == handshake.MagicCookieValue:
		return serve(a, d)
	default:
		fmt.Fprintf(stderr, "%s %s is a Holdfast plugin: holdfast starts it.\nUsage: %s describe\n", a.Name, a.Version, os.Args[0])
		return 2
	}
}
