package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// role says on whose machine a process would be.
type role int

const (
	client role = iota
	plugin      // drives the hypervisor, beside the client
	server
)

// account is what one operation took.
type account struct {
	wall time.Duration
	sync time.Duration // until the kernel had everything on disk afterwards
	cpu  [server + 1]time.Duration
	peak [server + 1]int64 // of the largest process, bytes
}

func (a account) cpuTotal() time.Duration { return a.cpu[client] + a.cpu[plugin] + a.cpu[server] }

// daemon is a process that was there before the operation and stays, with
// everything that it starts.
type daemon struct {
	pid      int
	role     role
	children role // of everything that it starts
}

// measure runs a command and accounts for its processes and the daemons'.
func measure(ctx context.Context, cmd *exec.Cmd, daemons []daemon) (account, error) {
	syscall.Sync()
	for _, d := range daemons {
		forgetPeaks(d)
	}
	before, err := census(daemons)
	if err != nil {
		return account{}, err
	}
	w := watch{daemons: daemons}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return account{}, err
	}
	w.daemons = append(w.daemons[:len(w.daemons):len(w.daemons)], daemon{pid: cmd.Process.Pid, role: client, children: client})
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.run(watching) })
	failure := cmd.Wait()
	a := account{wall: time.Since(began)}
	stop()
	wg.Wait()
	syscall.Sync()
	a.sync = time.Since(began) - a.wall
	after, err := census(daemons)
	if err := errors.Join(failure, err); err != nil {
		return account{}, err
	}
	a.peak = w.peak
	for r := range a.peak {
		a.peak[r] = max(a.peak[r], after.peak[r])
		a.cpu[r] = after.cpu[r] - before.cpu[r]
	}
	a.cpu[client] += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return a, nil
}

// watch keeps the largest peaks of processes that may be gone at the end.
type watch struct {
	daemons []daemon
	peak    [server + 1]int64
}

const watchEvery = 50 * time.Millisecond

func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if now, err := census(w.daemons); err == nil {
			for r := range w.peak {
				w.peak[r] = max(w.peak[r], now.peak[r])
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// process is a line of the kernel's table.
type process struct {
	pid, parent int
	cpu         time.Duration // its own and that of children that it waited for
}

// census counts the daemons and what they started. CPU time of processes that
// have ended is in their parents'.
func census(daemons []daemon) (account, error) {
	all, err := processes()
	if err != nil {
		return account{}, err
	}
	var a account
	for _, d := range daemons {
		for pid, r := range d.family(all) {
			a.cpu[r] += all[pid].cpu
			a.peak[r] = max(a.peak[r], peakOf(pid))
		}
	}
	return a, nil
}

// family is the daemon and its descendants with their roles.
func (d daemon) family(all map[int]process) map[int]role {
	found := make(map[int]role)
	if _, alive := all[d.pid]; alive {
		found[d.pid] = d.role
	}
	for grown := true; grown; {
		grown = false
		for pid, p := range all {
			_, related := found[p.parent]
			if _, known := found[pid]; known || !related {
				continue
			}
			found[pid] = d.children
			grown = true
		}
	}
	return found
}

func processes() (map[int]process, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	all := make(map[int]process, len(paths))
	for _, path := range paths {
		if p, ok := readProcess(path); ok {
			all[p.pid] = p
		}
	}
	return all, nil
}

func readProcess(path string) (p process, ok bool) {
	// clockTicks is the unit of CPU time in stat, per second, on every Linux that Go runs on.
	const clockTicks = 100
	text, err := os.ReadFile(path)
	if err != nil {
		return p, false // it has ended
	}
	end := strings.LastIndexByte(string(text), ')') // of the program's name
	if end < 0 {
		return p, false
	}
	fields := strings.Fields(string(text[end+1:])) // from the third on: the state
	if len(fields) < 15 {
		return p, false
	}
	number := func(i int) int64 {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		ok = ok && err == nil
		return n
	}
	ok = true
	p.parent = int(number(1))
	p.cpu = time.Duration(number(11)+number(12)+number(13)+number(14)) * time.Second / clockTicks
	p.pid, err = strconv.Atoi(filepath.Base(filepath.Dir(path)))
	return p, ok && err == nil
}

// peakOf is the most memory that a process had since forgetPeaks; 0 if it has
// ended.
func peakOf(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}

// forgetPeaks lets peaks count from now on. The kernel lets only the owner of a
// process do this; without it they count from its start.
func forgetPeaks(d daemon) {
	all, err := processes()
	if err != nil {
		return
	}
	for pid := range maps.Keys(d.family(all)) {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
}

// settle treats the caches alike before each operation: what others left is
// dropped, what this one reads is read once, and memory that a virtual machine's
// host has taken back is fetched, which would otherwise be paid for by whoever
// comes first.
func settle(ctx context.Context, inputs []string) error {
	syscall.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
		cachesStay()
	}
	var total int64
	for _, input := range inputs {
		err := filepath.WalkDir(input, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			n, err := warm(path)
			total += n
			return err
		})
		if err != nil {
			return err
		}
	}
	return touch(ctx, total+gib)
}

var cachesStay = sync.OnceFunc(func() {
	progress("not root, so the caches stay as they are: compare restores with care")
})

func warm(path string) (total int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for buf := make([]byte, 4*mib); ; {
		n, err := f.Read(buf)
		total += int64(n)
		if n == 0 || err != nil {
			return total, nil // its end, or it shrank
		}
	}
}

// touchFlag is the hidden flag with which bench runs itself to touch memory: in
// a process of its own, because the peak of a process counts from the size of
// the one that forks it.
const touchFlag = "-touch"

func touch(ctx context.Context, bytes int64) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return exec.CommandContext(ctx, self, touchFlag, strconv.FormatInt(bytes, 10)).Run()
}

// touchMemory fills up to half of the free memory and gives it back.
func touchMemory(bytes int64) error {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return err
	}
	free := int64(info.Freeram) * int64(info.Unit)
	memory, err := syscall.Mmap(-1, 0, int(min(bytes, free/2)), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	for i := 0; i < len(memory); i += fsBlock {
		memory[i] = 1
	}
	return syscall.Munmap(memory)
}

// sizeOf is the space that a directory takes, in bytes.
func sizeOf(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			total += stat.Blocks * 512
		}
		return nil
	})
	return total, err
}

// sameBytes compares two files.
func sameBytes(first, after string) error {
	one, err := os.Stat(first)
	if err != nil {
		return err
	}
	two, err := os.Stat(after)
	if err != nil {
		return err
	}
	if one.Size() != two.Size() {
		return fmt.Errorf("restored %d bytes of %d", two.Size(), one.Size())
	}
	xs, err := differences(first, after)
	if err == nil && len(xs) > 0 {
		err = fmt.Errorf("the restored disk differs from the source in %d places, first at byte %d", len(xs), xs[0].offset)
	}
	return err
}
