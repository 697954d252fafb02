package sdk

import (
	"context"
	"net/netip"
)

// AbilityConsole is the ability of a Console, AbilityGuest that of a Guest.
const (
	AbilityConsole Ability = "console"
	AbilityGuest   Ability = "guest"
)

// Console shows what a machine shows.
type Console interface {
	// Screenshot is the machine's screen as a PNG of at most MaxScreenshot
	// bytes. A machine that does not run is ErrInvalid, one without a screen
	// ErrUnsupported.
	Screenshot(ctx context.Context, space Space, machine MachineID) ([]byte, error)
}

// MaxScreenshot is the largest screenshot, in bytes.
const MaxScreenshot = 4 << 20

// Guest asks the agent inside a machine.
type Guest interface {
	// GuestInfo is what the machine's guest agent says. A machine that does not
	// run, or whose agent does not answer, is ErrUnavailable.
	GuestInfo(ctx context.Context, space Space, machine MachineID) (GuestInfo, error)
}

// GuestInfo is what a guest says about itself.
type GuestInfo struct {
	Hostname   string
	System     string // "Debian GNU/Linux 12 (bookworm)"
	Interfaces []GuestInterface
}

// GuestInterface is a network interface as the guest sees it.
type GuestInterface struct {
	Name      string
	MAC       string
	Addresses []netip.Prefix // address and length of its network's prefix
}
