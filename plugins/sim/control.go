package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// command is one thing that can be done by hand.
type command struct {
	usage    string // of what follows DIR
	min, max int    // how many arguments follow DIR; max below 0 is no bound
	run      func(hv *sim.Hypervisor, args []string, stdin io.Reader, stdout io.Writer) error
}

var commands = map[string]command{
	"create":     {"NAME SIZE...", 2, -1, create},
	"list":       {"", 0, 0, list},
	"write":      {"MACHINE DISK OFFSET [TEXT]", 3, 4, write},
	"fill":       {"MACHINE DISK OFFSET LENGTH SEED", 5, 5, fill},
	"read":       {"MACHINE DISK OFFSET LENGTH", 4, 4, read},
	"hash":       {"MACHINE [DISK]", 1, 2, hash},
	"power":      {"MACHINE off|running|paused", 2, 2, power},
	"delete":     {"MACHINE", 1, 1, remove},
	"lose-marks": {"MACHINE", 1, 1, loseMarks},
	"objects":    {"", 0, 0, objects},
	"faults":     {"[JSON]", 0, 1, faults},
	"hook":       {"VERB [WORD]...", 1, 5, hook},
}

// pieceSize is how much is read from standard input, or filled, in one go.
const pieceSize = 1 << 20

func control(name string, args []string, stdin io.Reader, stdout io.Writer) error {
	c, ok := commands[name]
	if !ok {
		return fmt.Errorf("there is no command %q", name)
	}
	dir, args := args[0], args[1:]
	if len(args) < c.min || c.max >= 0 && len(args) > c.max {
		return fmt.Errorf("usage: %s DIR %s", name, c.usage)
	}
	hv, err := sim.Open(dir)
	if err != nil {
		return err
	}
	return c.run(hv, args, stdin, stdout)
}

// create makes a machine that runs, and prints its id.
func create(hv *sim.Hypervisor, args []string, _ io.Reader, stdout io.Writer) error {
	spec := sim.MachineSpec{Name: args[0], State: sdk.StateRunning}
	for _, text := range args[1:] {
		size, err := parseSize(text)
		if err != nil {
			return err
		}
		spec.DiskBytes = append(spec.DiskBytes, size)
	}
	m, err := hv.CreateMachine(spec)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, m.ID)
	return err
}

// parseSize reads a number of bytes with an optional K, M, G or T.
func parseSize(text string) (int64, error) {
	shift := map[string]uint{"K": 10, "M": 20, "G": 30, "T": 40}
	digits, unit := text, uint(0)
	for suffix, n := range shift {
		if cut, ok := strings.CutSuffix(strings.ToUpper(text), suffix); ok {
			digits, unit = cut, n
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > int64(sim.MaxDiskBytes)>>unit {
		return 0, fmt.Errorf("%q is not a size", text)
	}
	return n << unit, nil
}

func list(hv *sim.Hypervisor, _ []string, _ io.Reader, stdout io.Writer) error {
	machines, err := hv.Machines()
	if err != nil {
		return err
	}
	for _, m := range machines {
		var disks []string
		for _, d := range m.Disks {
			disks = append(disks, fmt.Sprintf("%s=%d", d.ID, d.SizeBytes))
		}
		if _, err := fmt.Fprintf(stdout, "%s\t%s\t%s\t%s\n", m.ID, m.Name, m.State, strings.Join(disks, ",")); err != nil {
			return err
		}
	}
	return nil
}

func write(hv *sim.Hypervisor, args []string, stdin io.Reader, _ io.Writer) error {
	m, off, err := place(hv, args)
	if err != nil {
		return err
	}
	if len(args) == 4 {
		stdin = strings.NewReader(args[3])
	}
	buf := make([]byte, pieceSize)
	for {
		n, err := io.ReadFull(stdin, buf)
		if n > 0 {
			if err := hv.WriteDisk(m.ID, sdk.DiskID(args[1]), off, buf[:n]); err != nil {
				return err
			}
			off += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func fill(hv *sim.Hypervisor, args []string, _ io.Reader, _ io.Writer) error {
	length, err := parseSize(args[3])
	if err != nil {
		return err
	}
	var seed [32]byte
	copy(seed[:], args[4])
	noise := io.LimitReader(rand.NewChaCha8(seed), length)
	return write(hv, args[:3], noise, nil)
}

func read(hv *sim.Hypervisor, args []string, _ io.Reader, stdout io.Writer) error {
	m, off, err := place(hv, args)
	if err != nil {
		return err
	}
	length, err := parseSize(args[3])
	if err != nil {
		return err
	}
	buf := make([]byte, min(length, pieceSize))
	for length > 0 {
		piece := buf[:min(length, pieceSize)]
		if err := hv.ReadDisk(m.ID, sdk.DiskID(args[1]), off, piece); err != nil {
			return err
		}
		if _, err := stdout.Write(piece); err != nil {
			return err
		}
		off, length = off+int64(len(piece)), length-int64(len(piece))
	}
	return nil
}

// place reads MACHINE DISK OFFSET.
func place(hv *sim.Hypervisor, args []string) (sdk.Machine, int64, error) {
	m, err := hv.Find(args[0])
	if err != nil {
		return sdk.Machine{}, 0, err
	}
	off, err := parseSize(args[2])
	return m, off, err
}

func hash(hv *sim.Hypervisor, args []string, _ io.Reader, stdout io.Writer) error {
	m, err := hv.Find(args[0])
	if err != nil {
		return err
	}
	for _, d := range m.Disks {
		if len(args) == 2 && string(d.ID) != args[1] {
			continue
		}
		sum, err := hv.HashDisk(m.ID, d.ID)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(stdout, "%x  %s\n", sum, d.ID); err != nil {
			return err
		}
	}
	return nil
}

func power(hv *sim.Hypervisor, args []string, _ io.Reader, _ io.Writer) error {
	m, err := hv.Find(args[0])
	if err != nil {
		return err
	}
	switch state := sdk.State(args[1]); state {
	case sdk.StateOff, sdk.StateRunning, sdk.StatePaused:
		return hv.SetState(m.ID, state)
	default:
		return fmt.Errorf("%q is none of off, running, paused", args[1])
	}
}

func remove(hv *sim.Hypervisor, args []string, _ io.Reader, _ io.Writer) error {
	m, err := hv.Find(args[0])
	if err != nil {
		return err
	}
	return hv.DeleteMachine(m.ID)
}

func loseMarks(hv *sim.Hypervisor, args []string, _ io.Reader, _ io.Writer) error {
	m, err := hv.Find(args[0])
	if err != nil {
		return err
	}
	return hv.LoseMarks(m.ID)
}

func objects(hv *sim.Hypervisor, _ []string, _ io.Reader, stdout io.Writer) error {
	names, err := hv.Objects()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := fmt.Fprintln(stdout, name); err != nil {
			return err
		}
	}
	return nil
}

func faults(hv *sim.Hypervisor, args []string, _ io.Reader, _ io.Writer) error {
	var wanted []sim.Fault
	if len(args) == 1 {
		if err := json.Unmarshal([]byte(args[0]), &wanted); err != nil {
			return fmt.Errorf("read the faults: %w", err)
		}
	}
	return hv.SetFaults(wanted...)
}

// hook does what the conformance suite needs guests and operators for.
func hook(hv *sim.Hypervisor, args []string, stdin io.Reader, stdout io.Writer) error {
	verb, args := args[0], args[1:]
	switch {
	case verb == "verbs" && len(args) == 0:
		_, err := fmt.Fprintln(stdout, "write\nread\nremove\nobjects\nprovoke")
		return err
	case verb == "write" && len(args) == 3:
		return write(hv, args, stdin, stdout)
	case verb == "read" && len(args) == 4:
		return read(hv, args, stdin, stdout)
	case verb == "remove" && len(args) == 1:
		return remove(hv, args, stdin, stdout)
	case verb == "objects" && len(args) == 0:
		return objects(hv, args, stdin, stdout)
	case verb == "provoke" && len(args) == 1:
		return hv.SetFaults(sim.Fault{
			Call: "Probe", Action: sim.ActionError, Code: sdk.Code(args[0]), Fault: sdk.FaultBackend,
			Message: "on request", Hint: "ask again",
		})
	default:
		return fmt.Errorf("hook: %s with %d words", verb, len(args))
	}
}
