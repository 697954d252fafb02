package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	// hookLimit is how long one call of a hook may take.
	hookLimit = time.Minute
	// maxHookText is how much a hook may print where a list is expected, and
	// to its standard error.
	maxHookText = 16 << 20
	// hookCannot is the exit code with which a hook says that it cannot do
	// what is asked in this case.
	hookCannot = 3
)

// Hook is a command that does what a Fixture needs an operator and a guest for.
// With one, a plugin in any language is held to the whole suite. The command is
// run by sh, with these words behind it:
//
//	verbs                                 print which of the following it knows, one a line
//	write MACHINE DISK OFFSET             write standard input to a disk, as the guest would; MACHINE
//	                                      may be that of an instance of a replica
//	read MACHINE DISK OFFSET LENGTH       print LENGTH bytes of a disk of a machine that is off
//	remove MACHINE                        destroy a machine that a check has made
//	objects                               print everything that a plugin could leave, one a line
//	provoke CODE                          make the next probe of the endpoint fail with this error
//
// MACHINE and DISK are ids as the plugin gives them, OFFSET and LENGTH are
// bytes. Exit code 0 means done. 3 means that it cannot be done in this case,
// which provoke may answer to some codes. Anything else is a failure, of which
// standard error says the reason. What each has to do is said at the fields of
// Fixture. A verb that is not known makes the checks that need it skip.
type Hook string

// Fill has the hook do what it knows, in a fixture for the machine that its
// checks may use.
func (h Hook) Fill(ctx context.Context, f *Fixture) error {
	text, err := h.run(ctx, nil, maxHookText, "verbs")
	if err != nil {
		return err
	}
	known := lines(text)
	for _, verb := range known {
		if !slices.Contains([]string{"write", "read", "remove", "objects", "provoke"}, verb) {
			return fmt.Errorf("hook %s knows the verb %q, which nobody asks for", h, verb)
		}
	}
	if slices.Contains(known, "write") {
		f.WriteInstance = func(machine sdk.MachineID, disk sdk.DiskID, off int64, data []byte) error {
			_, err := h.run(ctx, data, maxHookText, "write", string(machine), string(disk), strconv.FormatInt(off, 10))
			return err
		}
		f.Write = func(disk sdk.DiskID, off int64, data []byte) error {
			return f.WriteInstance(f.Machine, disk, off, data)
		}
	}
	if slices.Contains(known, "read") {
		f.Read = func(machine sdk.MachineID, disk sdk.DiskID, off int64, data []byte) error {
			got, err := h.run(ctx, nil, int64(len(data)), "read", string(machine), string(disk),
				strconv.FormatInt(off, 10), strconv.Itoa(len(data)))
			if err == nil && len(got) != len(data) {
				err = fmt.Errorf("hook %s printed %d bytes, want %d", h, len(got), len(data))
			}
			copy(data, got)
			return err
		}
	}
	if slices.Contains(known, "remove") {
		f.Remove = func(machine sdk.MachineID) error {
			_, err := h.run(ctx, nil, maxHookText, "remove", string(machine))
			return err
		}
	}
	if slices.Contains(known, "objects") {
		f.Objects = func() ([]string, error) {
			text, err := h.run(ctx, nil, maxHookText, "objects")
			return lines(text), err
		}
	}
	if slices.Contains(known, "provoke") {
		f.Provoke = func(code sdk.Code) error {
			_, err := h.run(ctx, nil, maxHookText, "provoke", string(code))
			return err
		}
	}
	return nil
}

// run runs the command and returns at most limit bytes of what it printed.
func (h Hook) run(ctx context.Context, stdin []byte, limit int64, words ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, hookLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", string(h) + ` "$@"`, "hook"}, words...)...)
	cmd.WaitDelay = time.Second // for a pipe that a child of its own holds
	stdout, stderr := &bounded{limit: limit}, &bounded{limit: maxHookText}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), stdout, stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("hook %s %s: %w", h, words[0], ctx.Err())
	case errors.As(err, &exit) && exit.ExitCode() == hookCannot:
		return nil, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultHost, "hook %s cannot %s", h, strings.Join(words, " "))
	case err != nil:
		return nil, fmt.Errorf("hook %s %s: %w: %s", h, words[0], err, bytes.TrimSpace(stderr.Bytes()))
	case stdout.over:
		return nil, fmt.Errorf("hook %s %s printed more than %d bytes", h, words[0], limit)
	}
	return stdout.Bytes(), nil
}

// bounded keeps so much of what is written to it.
type bounded struct {
	bytes.Buffer
	limit int64
	over  bool
}

var _ io.Writer = (*bounded)(nil)

func (b *bounded) Write(p []byte) (int, error) {
	room := b.limit - int64(b.Len())
	b.over = b.over || int64(len(p)) > room
	b.Buffer.Write(p[:min(int64(len(p)), max(room, 0))])
	return len(p), nil
}

func lines(text []byte) []string {
	var list []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}
	return list
}
