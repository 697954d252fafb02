//go:build !unix

package conformance

import (
	"errors"
	"fmt"
	"os"

	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// Control makes a Process of a plugin that plugin.Start has started on this
// machine. Here, a process can be killed, but not stopped.
func Control(p *plugin.Process) Process {
	return Process{Platform: p.Platform(), Kill: func() error {
		process, err := os.FindProcess(p.PID())
		if err == nil {
			err = process.Kill()
		}
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("kill plugin process %d: %w", p.PID(), err)
		}
		return p.Close() // waits for its end
	}}
}
