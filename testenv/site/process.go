package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/testenv"
)

// stat is the part of /proc/PID/stat that matters here.
type stat struct {
	state   string
	parent  int
	started uint64
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The second field is a name in parentheses, which may hold anything.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	const state, parent, started = 0, 1, 19
	if len(fields) <= started {
		return stat{}, errors.New("short stat")
	}
	s := stat{state: fields[state]}
	if s.parent, err = strconv.Atoi(fields[parent]); err != nil {
		return stat{}, err
	}
	s.started, err = strconv.ParseUint(fields[started], 10, 64)
	return s, err
}

func startTime(pid int) (uint64, error) {
	s, err := readStat(pid)
	return s.started, err
}

// alive reports whether the process that started then still runs.
func alive(pid int, started uint64) bool {
	s, err := readStat(pid)
	return err == nil && s.started == started && s.state != "Z" && s.state != "X"
}

func processes() iter.Seq[int] {
	return func(yield func(int) bool) {
		entries, _ := os.ReadDir("/proc")
		for _, entry := range entries {
			if pid, err := strconv.Atoi(entry.Name()); err == nil && !yield(pid) {
				return
			}
		}
	}
}

// process finds a process of the site by its arguments and returns its id as seen from here.
func (s *Site) process(wanted func(args []string) bool) (int, error) {
	for pid := range processes() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(data) == 0 {
			continue
		}
		if args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00"); wanted(args) && s.descends(pid) {
			return pid, nil
		}
	}
	return 0, errors.New("the site has no such process")
}

func (s *Site) descends(pid int) bool {
	for range 16 {
		if pid == s.Boot {
			return true
		}
		stat, err := readStat(pid)
		if err != nil || stat.parent <= 1 {
			return false
		}
		pid = stat.parent
	}
	return false
}

// removeStale removes what dead programs left. Their sites' processes have ended with them as a rule; where they could
// not, they are ended here.
func removeStale() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, stateFile))
		if err != nil {
			continue // starting, or somebody else's
		}
		var s Site
		if json.Unmarshal(data, &s) != nil || s.Dir != dir || s.Owner == 0 || ownerLives(s.Owner, dir) {
			continue
		}
		if err := s.Close(); err != nil {
			return fmt.Errorf("remove a dead program's site: %w", err)
		}
	}
	return nil
}

// ownerLives errs on the side of a living owner when the id was reused; the site is then removed another time.
func ownerLives(pid int, _ string) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// turn is the machine-wide right to have sites, shared by all sites of this program.
var turn struct {
	sync.Mutex
	file  *os.File
	users int
}

// takeTurn waits until no other program has sites. A detached site does not hold the turn: its program ends.
func takeTurn(ctx context.Context, exempt bool) (release func(), err error) {
	if exempt {
		return func() {}, nil
	}
	turn.Lock()
	defer turn.Unlock()
	if turn.users == 0 {
		if turn.file, err = lockFile(ctx, filepath.Join(testenv.CacheDir(), "site.lock")); err != nil {
			return nil, err
		}
	}
	turn.users++
	return sync.OnceFunc(func() {
		turn.Lock()
		defer turn.Unlock()
		if turn.users--; turn.users == 0 {
			turn.file.Close()
		}
	}), nil
}

func lockFile(ctx context.Context, path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the sites' lock: %w", err)
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			file.Close()
			return nil, fmt.Errorf("take the sites' lock: %w", err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("wait for another program's sites: %w", ctx.Err())
		}
	}
}
