package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// restic with rest-server over TLS.
type restic struct {
	tools
	program, server string
	url             string
}

func newRestic(r *round) (peer, error) {
	p := &restic{tools: newTools(r, "restic")}
	var err1, err2 error
	p.program, err1 = findProgram("restic")
	p.server, err2 = findProgram("rest-server")
	return p, errors.Join(err1, err2)
}

func (p *restic) start(ctx context.Context) error {
	if err := p.mkdirs(); err != nil {
		return err
	}
	cert, key := filepath.Join(p.dir, "tls.crt"), filepath.Join(p.dir, "tls.key")
	if _, err := certificate(cert, key); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	p.url = fmt.Sprintf("rest:https://127.0.0.1:%d/", port)
	p.env = append(p.env, "RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR="+filepath.Join(p.dir, "cache"), "RESTIC_CACERT="+cert)
	if err := p.serve(ctx, port, anyOutput, p.server, "--path", p.repository(), "--no-auth", "--tls", "--tls-cert", cert, "--tls-key", key,
		"--listen", "127.0.0.1:"+strconv.Itoa(port)); err != nil {
		return err
	}
	_, err = p.call(ctx, p.program, "-r", p.url, "-q", "init")
	return err
}

func (p *restic) ready(ctx context.Context, op operation) (*exec.Cmd, []string, error) {
	inputs, err := p.input(op)
	if op == opRestore {
		return p.command(ctx, p.program, "-r", p.url, "-q", "restore", "latest:"+p.disks(), "--target", p.target(), "--sparse"), inputs, err
	}
	return p.command(ctx, p.program, "-r", p.url, "-q", "backup", p.image()), inputs, err
}

// kopia with its own server, which holds the key.
type kopia struct {
	tools
	program string
}

func newKopia(r *round) (peer, error) {
	p := &kopia{tools: newTools(r, "kopia")}
	var err error
	p.program, err = findProgram("kopia")
	return p, err
}

// at is a command line for one of the two configurations.
func (p *kopia) at(config string, args ...string) []string {
	return append([]string{"--config-file=" + filepath.Join(p.dir, config+".config"), "--log-dir=" + filepath.Join(p.dir, "log"), "--no-progress"}, args...)
}

func (p *kopia) start(ctx context.Context) error {
	if err := p.mkdirs(); err != nil {
		return err
	}
	cert, key := filepath.Join(p.dir, "tls.crt"), filepath.Join(p.dir, "tls.key")
	fingerprint, err := certificate(cert, key)
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	env := append(p.env[:len(p.env):len(p.env)], "KOPIA_PASSWORD=bench", "KOPIA_CHECK_FOR_UPDATES=false")
	p.env = append(env[:len(env):len(env)], "KOPIA_CACHE_DIRECTORY="+filepath.Join(p.dir, "cache-server"))
	for _, args := range [][]string{
		{"repository", "create", "filesystem", "--path=" + p.repository()},
		{"policy", "set", "--global", "--compression=zstd"}, // by default it does not compress
		{"server", "user", "add", "user@host", "--user-password=bench"},
	} {
		if _, err := p.call(ctx, p.program, p.at("server", args...)...); err != nil {
			return err
		}
	}
	address := fmt.Sprintf("https://127.0.0.1:%d", port)
	if err := p.serve(ctx, port, func(out string) bool { return strings.Contains(out, "SERVER ADDRESS") }, p.program, p.at("server", "server", "start",
		"--tls-cert-file="+cert, "--tls-key-file="+key, "--address="+address, "--server-username=admin", "--server-password=bench")...); err != nil {
		return err
	}
	p.env = append(env[:len(env):len(env)], "KOPIA_CACHE_DIRECTORY="+filepath.Join(p.dir, "cache-client"))
	_, err = p.call(ctx, p.program, p.at("client", "repository", "connect", "server", "--url="+address, "--server-cert-fingerprint="+fingerprint,
		"--override-username=user", "--override-hostname=host")...)
	return err
}

func (p *kopia) ready(ctx context.Context, op operation) (*exec.Cmd, []string, error) {
	inputs, err := p.input(op)
	if op != opRestore || err != nil {
		return p.command(ctx, p.program, p.at("client", "snapshot", "create", p.disks())...), inputs, err
	}
	out, err := p.call(ctx, p.program, p.at("client", "snapshot", "list", "--json", p.disks())...)
	if err != nil {
		return nil, nil, err
	}
	var snapshots []struct {
		ID        string
		StartTime time.Time
	}
	if err := json.Unmarshal([]byte(out), &snapshots); err != nil || len(snapshots) == 0 {
		return nil, nil, fmt.Errorf("kopia lists no snapshot: %w", cmp.Or(err, errors.New("the list is empty")))
	}
	slices.SortFunc(snapshots, func(x, y struct {
		ID        string
		StartTime time.Time
	}) int {
		return x.StartTime.Compare(y.StartTime)
	})
	last := snapshots[len(snapshots)-1].ID
	return p.command(ctx, p.program, p.at("client", "snapshot", "restore", last, p.target(), "--write-sparse-files")...), inputs, nil
}

// borg to a directory: it has no server of its own but through SSH.
type borg struct {
	tools
	program string
	archive string // the latest
}

func newBorg(r *round) (peer, error) {
	p := &borg{tools: newTools(r, "borg")}
	var err error
	p.program, err = findProgram("borg")
	return p, err
}

func (p *borg) start(ctx context.Context) error {
	if err := p.mkdirs(); err != nil {
		return err
	}
	p.env = append(p.env, "BORG_PASSPHRASE=bench", "BORG_BASE_DIR="+p.dir, "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes")
	_, err := p.call(ctx, p.program, "init", "-e", "repokey-blake2", p.repository())
	return err
}

func (p *borg) ready(ctx context.Context, op operation) (*exec.Cmd, []string, error) {
	inputs, err := p.input(op)
	if op == opRestore {
		cmd := p.command(ctx, p.program, "extract", "--sparse", "--strip-components", "1", p.repository()+"::"+p.archive)
		cmd.Dir = p.target()
		return cmd, inputs, err
	}
	p.archive = string(op)
	return p.command(ctx, p.program, "create", "--chunker-params", "fixed,4194304", "--sparse", p.repository()+"::"+p.archive, filepath.Base(p.disks())), inputs, err
}
