package sim

import "github.com/holdfast-dr/holdfast/sdk"

// Breach is a rule of the contract that is broken on request.
type Breach string

// Break is the platform with one rule broken.
func (p *Platform) Break(Breach) sdk.Platform { return p }
