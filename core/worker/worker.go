package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

const (
	// firstPause is between two attempts to connect; it doubles up to
	// longestPause. A session that lasted for steadyAfter starts over.
	firstPause   = time.Second
	longestPause = 30 * time.Second
	steadyAfter  = time.Minute
	// renewEvery is how often the age of the certificate is looked at.
	renewEvery = time.Hour
	// maxSocketDir is the longest run directory that leaves room for sockets.
	maxSocketDir = 50
)

// Options are what a Worker is made of.
type Options struct {
	Dir     string   // of its files
	Plugins []string // directories with plugin programs; nil means that of this program
	Version string   // of this program
	Log     *slog.Logger
	Clock   func() time.Time
	// Beat and Silence are those of the package where they are 0.
	Beat, Silence time.Duration
}

// Worker runs plugins for a hub. It listens on nothing.
type Worker struct {
	options Options
	log     *slog.Logger
	now     func() time.Time
	runDir  string
	unlock  func() error
}

// New makes the worker of a directory, which only one process has.
func New(o Options) (*Worker, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Beat <= 0 {
		o.Beat = Beat
	}
	if o.Silence <= 0 {
		o.Silence = Silence
	}
	if len(o.Plugins) == 0 {
		program, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the directory of plugins: %w", err)
		}
		o.Plugins = []string{filepath.Dir(program)}
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the worker's directory: %w", err)
	}
	w := &Worker{options: o, log: o.Log, now: o.Clock}
	if err := w.lock(); err != nil {
		return nil, err
	}
	if run := filepath.Join(o.Dir, "run"); len(run) <= maxSocketDir {
		w.runDir = run
	}
	if err := sweep(w.runDir); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the run directory of plugins: %w", err), w.unlock())
	}
	return w, nil
}

// lock takes the directory; the kernel gives it back when the process ends.
func (w *Worker) lock() error {
	f, err := os.OpenFile(filepath.Join(w.options.Dir, "worker.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the worker's directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "another worker has the directory %s", w.options.Dir)
	}
	w.unlock = f.Close
	return nil
}

// sweep makes the run directory and removes the sockets of a killed worker.
func sweep(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	stale, err := filepath.Glob(filepath.Join(dir, "plugin*"))
	for _, path := range stale {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// Close gives the directory back, after Serve has returned.
func (w *Worker) Close() error { return w.unlock() }

// Serve is connected to the hub until ctx ends, as far as it can be, and returns
// when every process that it started has ended. A hub that refuses the worker is
// asked again, at the longest pause.
func (w *Worker) Serve(ctx context.Context) error {
	wait := firstPause
	for {
		began := w.now()
		err := w.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if w.now().Sub(began) >= steadyAfter {
			wait = firstPause
		}
		if errors.Is(err, sdk.ErrDenied) || errors.Is(err, sdk.ErrNotFound) {
			wait = longestPause
		}
		// Many workers of one agent do not come back in step.
		next := wait/2 + rand.N(wait/2+1)
		log := w.log
		if hint := sdk.HintOf(err); hint != "" {
			log = log.With("hint", hint)
		}
		log.Warn("not connected to the agent", "err", err, "again in", next.Round(time.Millisecond))
		if !pause(ctx, next) {
			return nil
		}
		wait = min(2*wait, longestPause)
	}
}

// session connects once and works until the connection is lost.
func (w *Worker) session(ctx context.Context) error {
	id, err := Load(w.options.Dir)
	if err != nil {
		return err
	}
	if id, err = id.renewed(ctx, w.options.Dir, w.now()); err != nil {
		if w.now().After(id.leaf.NotAfter) {
			return err
		}
		w.log.Warn("keep the present certificate", "until", id.leaf.NotAfter, "err", err)
	}
	conn, err := id.dial(ctx, greeting{Do: doServe, About: About{Version: w.options.Version, OS: runtime.GOOS, Arch: runtime.GOARCH}})
	if err != nil {
		return err
	}
	var answer welcome
	if err := readMessage(conn, maxGreeting, &answer); err != nil {
		_ = conn.Close()
		return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "wait for the answer of %s: %v", id.Address, heard(err, meetLimit))
	}
	if err := answer.Error.err(); err != nil {
		_ = conn.Close()
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	w.log.Info("connected to the agent", "address", id.Address, "worker", answer.Name)
	return w.work(ctx, id, conn)
}

// work is one session with a certificate that is renewed when it is due.
func (w *Worker) work(ctx context.Context, id Identity, conn *tls.Conn) error {
	s := newShift(w, id, conn)
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		beat(renewEvery, s.lost, func() {
			next, err := s.identity().renewed(ctx, w.options.Dir, w.now())
			if err != nil {
				w.log.Warn("keep the present certificate", "err", err)
				return
			}
			s.own.Store(&next)
		})
	}()
	err := s.run(ctx)
	<-renewing
	return err
}

// pluginName is what a plugin may be called. It is part of a path.
var pluginName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

const programPrefix = "holdfast-plugin-"

// find gives the path of a plugin's program.
func (w *Worker) find(name string) (string, error) {
	if pluginName.MatchString(name) {
		for _, dir := range w.options.Plugins {
			path, err := filepath.Abs(filepath.Join(dir, programPrefix+name))
			if err != nil {
				return "", fmt.Errorf("look for plugin %s: %w", name, err)
			}
			if executable(path) {
				return path, nil
			}
		}
	}
	return "", sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "there is no program %s%s", programPrefix, clip(name, maxWord)).
		WithHint("it has: %s", strings.Join(w.programs(), ", "))
}

// programs lists the plugins that there are, by name.
func (w *Worker) programs() []string {
	var names []string
	for _, dir := range w.options.Plugins {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.log.Warn("look for plugins", "err", err)
		}
		for _, e := range entries {
			name, ok := strings.CutPrefix(e.Name(), programPrefix)
			if ok && pluginName.MatchString(name) && executable(filepath.Join(dir, e.Name())) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// inspect says what a plugin's program is.
func (w *Worker) inspect(ctx context.Context, name string) (sum string, d plugin.Description, err error) {
	path, err := w.find(name)
	if err != nil {
		return "", d, err
	}
	if sum, err = plugin.Checksum(path); err != nil {
		return "", d, err
	}
	d, err = plugin.Describe(ctx, path, sum)
	return sum, d, err
}
