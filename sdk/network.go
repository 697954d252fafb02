package sdk

import (
	"context"
	"iter"
)

// AbilityNetworker is the ability of a Networker.
const AbilityNetworker Ability = "networker"

// Networker offers networks to machines, and makes them where the back-end can.
type Networker interface {
	// Networks lists the networks that machines of a space may be connected to;
	// for the empty space, all of the back-end.
	Networks(ctx context.Context, space Space) iter.Seq2[Network, error]

	// CreateNetwork makes a network for a space. A repeat with the same Op.ID
	// returns the same one; a name that is taken is ErrInvalid, a back-end that
	// makes none ErrUnsupported.
	CreateNetwork(ctx context.Context, op Op, spec NetworkSpec) (Network, error)

	// RemoveNetwork removes a network that CreateNetwork made; any other one is
	// ErrDenied. One that a machine is connected to is ErrBusy, with the machine
	// in the message. An unknown one is nil.
	RemoveNetwork(ctx context.Context, op Op, name string) error
}

// NetworkSpec asks for a network.
type NetworkSpec struct {
	Name string // unique within the back-end
	// VLAN is the 802.1Q tag under which frames leave the host, 1 to 4094; 0
	// means that they never leave it.
	VLAN int
	// Uplink is the back-end's network or interface that carries the VLAN; ""
	// for a network that stays inside.
	Uplink string
}

// Network is a network as the back-end has it.
type Network struct {
	Name   string
	Space  Space // of whom it was made for; "" if anybody may use it
	VLAN   int
	Uplink string
	Ours   bool // CreateNetwork made it
}
