package site

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/testenv/guest"
)

// console is the guest's serial line: the terminal that QEMU made for it.
type console struct {
	file *os.File
	text bytes.Buffer // what came and was not yet looked at
}

// mostConsole bounds what is kept of a guest that talks without being asked.
const mostConsole = 1 << 20

func (g Guest) console(ctx context.Context) (*console, error) {
	path, err := g.site.Virsh(ctx, "ttyconsole", g.Name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the console of %s: %w", g.Name, err)
	}
	// A terminal that echoes would send the guest its own words.
	term, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		term.Iflag, term.Oflag, term.Lflag = 0, 0, 0
		err = unix.IoctlSetTermios(fd, unix.TCSETS, term)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up the console of %s: %w", g.Name, err)
	}
	return &console{file: os.NewFile(uintptr(fd), path)}, nil
}

func (c *console) send(line string) error {
	if err := c.file.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err := c.file.WriteString(line + "\n")
	return err
}

// await reads until found says so or the time is over.
func (c *console) await(limit time.Duration, found func(text string) bool) (bool, error) {
	deadline := time.Now().Add(limit)
	chunk := make([]byte, 4096)
	for !found(c.text.String()) {
		if err := c.file.SetReadDeadline(deadline); err != nil {
			return false, err
		}
		n, err := c.file.Read(chunk)
		c.text.Write(chunk[:n])
		if c.text.Len() > mostConsole {
			return false, errors.New("the guest talks too much")
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return found(c.text.String()), nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// WaitReady waits until the guest's shell answers, however long ago it came up.
func (g Guest) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ReadyLimit)
	defer cancel()
	c, err := g.console(ctx)
	if err != nil {
		return err
	}
	defer c.file.Close()
	for ctx.Err() == nil {
		// The marker is missed by a console that is opened late, and a question is lost on a shell that is not there yet.
		// The shell's answer differs from the echo of the question.
		answer := "awake-" + rand.Text()
		if err := c.send("echo awake''" + strings.TrimPrefix(answer, "awake")); err != nil {
			return fmt.Errorf("write to the console of %s: %w", g.Name, err)
		}
		ready, err := c.await(time.Second, func(text string) bool {
			return strings.Contains(text, answer) || strings.Contains(text, guest.Ready)
		})
		if err != nil {
			return fmt.Errorf("read the console of %s: %w", g.Name, err)
		}
		if ready {
			return nil
		}
	}
	return fmt.Errorf("wait for %s to boot: %w; its console ends with %q", g.Name, ctx.Err(), tail(c.text.String()))
}

func tail(text string) string { return text[max(0, len(text)-400):] }

// RunError is a console command that ended with a status other than zero.
type RunError struct {
	Status int
	Output string
}

// Error tells status and output.
func (e *RunError) Error() string { return fmt.Sprintf("status %d: %s", e.Status, e.Output) }

// runLimit is how long a command may take that its caller does not bound.
const runLimit = 3 * time.Minute

// Run runs a command line on the guest's console and returns what it printed.
func (g Guest) Run(ctx context.Context, command string) (string, error) {
	c, err := g.console(ctx)
	if err != nil {
		return "", err
	}
	defer c.file.Close()
	limit := runLimit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline))
	}
	// The shell echoes the line, broken at its idea of the terminal's width. The words as printed do not occur in it.
	id := rand.Text()[:8]
	first, last := "first-"+id, "last-"+id
	line := fmt.Sprintf("echo fir''st-%s; %s; echo la''st-%s $?", id, command, id)
	if err := c.send(line); err != nil {
		return "", fmt.Errorf("write to the console of %s: %w", g.Name, err)
	}
	var output, status string
	done, err := c.await(limit, func(text string) bool {
		_, rest, began := strings.Cut(text, first)
		printed, rest, ended := strings.Cut(rest, last)
		code, _, whole := strings.Cut(rest, "\n")
		output, status = printed, code
		return began && ended && whole
	})
	if err != nil || !done {
		cause := errors.Join(err, ctx.Err())
		if cause == nil {
			cause = fmt.Errorf("no answer for %v", limit.Round(time.Second))
		}
		return "", fmt.Errorf("run %q on %s: %w; its console ends with %q", command, g.Name, cause, tail(c.text.String()))
	}
	output = strings.TrimSpace(strings.ReplaceAll(output, "\r", ""))
	code, err := strconv.Atoi(strings.TrimSpace(status))
	if err != nil {
		return output, fmt.Errorf("run %q on %s: status %q", command, g.Name, status)
	}
	if code != 0 {
		return output, fmt.Errorf("run %q on %s: %w", command, g.Name, &RunError{Status: code, Output: output})
	}
	return output, nil
}

func runTool(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := tool(name)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run %s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}
