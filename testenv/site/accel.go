package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
)

// Accel is how guests run.
type Accel string

// The ways: in hardware, or translated by QEMU.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// trialLimit is far more than KVM needs to boot the guest. A machine on which it takes longer is better off with TCG.
const trialLimit = 20 * time.Second

// FindAccel is KVM if a trial guest boots with it, and TCG otherwise: a /dev/kvm that opens says little inside nested
// virtualisation. The verdict holds until the machine restarts.
func FindAccel(ctx context.Context) (Accel, error) {
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, nil
	}
	device.Close()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return TCG, nil
	}
	verdict := filepath.Join(testenv.CacheDir(), "accel-"+strings.TrimSpace(string(boot)))
	if known, err := os.ReadFile(verdict); err == nil {
		return Accel(known), nil
	}
	image, err := guest.Build(ctx, guest.Options{})
	if err != nil {
		return "", err
	}
	accel := TCG
	if trialBoots(ctx, image) {
		accel = KVM
	}
	if err := os.WriteFile(verdict, []byte(accel), 0o600); err != nil {
		return "", fmt.Errorf("remember how guests run: %w", err)
	}
	return accel, nil
}

func trialBoots(ctx context.Context, image guest.Image) bool {
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	qemu, err := tool("qemu-system-x86_64")
	if err != nil {
		return false
	}
	cmd := exec.CommandContext(ctx, qemu, "-accel", "kvm", "-M", "pc", "-m", "128", "-display", "none", "-monitor", "none",
		"-no-reboot", "-serial", "stdio", "-drive", "if=virtio,snapshot=on,format=qcow2,file="+image.Boot)
	watch := &watcher{words: []string{guest.Ready, "KVM internal error"}, seen: make(chan string, 1)}
	cmd.Stdout, cmd.Stderr = watch, watch
	cmd.WaitDelay = time.Second
	if cmd.Start() != nil {
		return false
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	defer func() {
		cancel()
		<-ended
	}()
	select {
	case word := <-watch.seen:
		return word == guest.Ready
	case <-ended:
		return false
	}
}

// watcher is a writer that tells which of some words it saw first.
type watcher struct {
	sync.Mutex
	words []string
	text  bytes.Buffer
	seen  chan string
}

func (w *watcher) Write(p []byte) (int, error) {
	w.Lock()
	defer w.Unlock()
	w.text.Write(p)
	for _, word := range w.words {
		if bytes.Contains(w.text.Bytes(), []byte(word)) {
			select {
			case w.seen <- word:
			default:
			}
		}
	}
	return len(p), nil
}
