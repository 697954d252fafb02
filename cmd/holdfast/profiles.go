package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"time"
)

const profilesUsage = "socket on which the process says where its time and memory go, for Go's pprof (default none)"

// How closely a process that serves its profiles looks at itself. Both cost
// less than can be measured.
const (
	mutexFraction = 20               // one in so many waits for a lock
	blockRate     = time.Millisecond // one sample for so much waiting
)

// profiles is where a daemon says what its time and memory go into: cpu, heap,
// allocs, mutex, block, goroutine, trace, as Go's tools read them. They hold
// names of functions, sizes and times, and no content; still they are for the
// daemon's own user only. Nil serves nothing.
type profiles struct {
	listener net.Listener
	server   *http.Server
}

// openProfiles listens on a Unix socket; an empty path gives nil.
func openProfiles(path string) (*profiles, error) {
	if path == "" {
		return nil, nil
	}
	listener, err := unixSocket{path: path, owner: "process", flag: "--profiles"}.listen()
	if err != nil {
		return nil, fmt.Errorf("serve profiles: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return &profiles{listener: listener, server: &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}}, nil
}

// serve answers until ctx ends. A profile that is being taken then is cut off.
func (p *profiles) serve(ctx context.Context, log *slog.Logger) error {
	if p == nil {
		return nil
	}
	runtime.SetMutexProfileFraction(mutexFraction)
	runtime.SetBlockProfileRate(int(blockRate))
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = p.server.Close()
	})
	log.InfoContext(ctx, "profiles are served", "socket", p.listener.Addr().String())
	err := p.server.Serve(p.listener)
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve profiles: %w", err)
}

// close removes the socket, also where serve was never called.
func (p *profiles) close() error {
	if p == nil {
		return nil
	}
	if err := p.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
