package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/sdk"
)

// A guard is a second process of this program, one for each snapshot, that keeps the guest from harm whatever happens to
// the first: it thaws a guest that nobody thawed, and ends a backup whose scratch files grow too large. It has to survive
// the death of the plugin, of the agent and of everything that the agent started. So it is started by a process that
// ends at once, which makes it nobody's child, in a session of its own, with a connection to libvirt of its own, and before
// anything is frozen.
//
// It gets its order, which holds secrets, through a pipe, and then words. The end of the pipe is the end of the plugin.
//
//	plugin ─▶ guard   order, then: freeze … thawed, watch, done
//	guard ─▶ plugin   ready, or why not
const guardArgument = "guard"

// What the plugin tells its guard.
const (
	wordFreeze = "freeze" // the guest may be frozen from now on
	wordThawed = "thawed" // and is not any more
	wordWatch  = "watch"  // the snapshot is open
	wordDone   = "done"   // there is none, or none any more
	wordReady  = "ready"
)

const (
	// guardStart is how long a guard may take until it is ready: two processes and a connection.
	guardStart = 5 * time.Second
	// guardMargin is how long after its deadline a freeze is left to the plugin, which thaws by itself as a rule.
	guardMargin = time.Second
	// guardGrace is how long a job may take to appear that a dying plugin had asked for.
	guardGrace = 5 * time.Second
	// guardPatience is how long a guard goes on trying while libvirt does not answer.
	guardPatience = 10 * time.Minute
	maxOrder      = 1 << 20
)

// guardOrder says what to guard.
type guardOrder struct {
	Config     Config        `json:"config"`
	Machine    sdk.MachineID `json:"machine"`
	Checkpoint string        `json:"checkpoint"` // of the snapshot
	Freeze     time.Duration `json:"freeze"`     // the longest
	Scratch    scratchLimit  `json:"scratch"`
}

// guard is the plugin's end. The nil guard takes every word and does nothing.
type guard struct{ words *os.File }

// startGuard returns when the guard is ready, which is when it has found the machine over its own connection.
func startGuard(ctx context.Context, order guardOrder) (*guard, error) {
	g, err := launchGuard(ctx, order)
	if err != nil {
		return nil, fmt.Errorf("start the guard that would thaw the guest if this process died: %w", err)
	}
	return g, nil
}

func launchGuard(ctx context.Context, order guardOrder) (*guard, error) {
	text, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	cmd, err := guardCommand(guardArgument)
	if err != nil {
		return nil, err
	}
	theirWords, words, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answers, theirAnswers, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirWords.Close(), words.Close())
	}
	defer answers.Close()
	cmd.Stdin, cmd.Stdout = theirWords, theirAnswers
	err = cmd.Run() // it ends as soon as it has started the guard
	_ = theirWords.Close()
	_ = theirAnswers.Close()
	g := &guard{words: words}
	if err == nil {
		err = g.brief(ctx, text, answers)
	}
	if err != nil {
		_ = words.Close()
		return nil, err
	}
	return g, nil
}

// brief hands over the order and waits until the guard is ready.
func (g *guard) brief(ctx context.Context, order []byte, answers *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, guardStart)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := errors.Join(g.words.SetWriteDeadline(deadline), answers.SetReadDeadline(deadline)); err != nil {
		return err
	}
	if _, err := g.words.Write(append(order, '\n')); err != nil {
		return err
	}
	answer, err := bufio.NewReader(io.LimitReader(answers, maxOrder)).ReadString('\n')
	answer = strings.TrimSpace(answer)
	switch {
	case answer == wordReady:
		return nil
	case answer != "":
		return errors.New(answer)
	}
	return fmt.Errorf("it does not answer: %w", err)
}

// say tells the guard something. One that is gone hears nothing, and the plugin goes on alone.
func (g *guard) say(word string) {
	if g != nil {
		_, _ = g.words.WriteString(word + "\n")
	}
}

// dismiss ends the guard, for there is no snapshot.
func (g *guard) dismiss() {
	if g != nil {
		g.say(wordDone)
		_ = g.words.Close()
	}
}

// keepGuard has the guard watch over the snapshot until it is ended.
func (p *platform) keepGuard(checkpoint string, g *guard) {
	if g == nil {
		return
	}
	g.say(wordWatch)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guards[checkpoint] = g
}

func (p *platform) guarded(checkpoint string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.guards[checkpoint] != nil
}

// relieve dismisses the guard of a snapshot that has ended. One of another process sees it by itself.
func (p *platform) relieve(checkpoint string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guards[checkpoint].dismiss()
	delete(p.guards, checkpoint)
}

// guardMain is the program when it is a guard. Its first process starts the second and ends.
func guardMain(args []string) int {
	if len(args) == 0 {
		cmd, err := guardCommand(guardArgument, "detached")
		if err == nil {
			cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
			err = cmd.Start()
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	spareGuard()
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	in := bufio.NewReaderSize(os.Stdin, 4096)
	g, err := takeOrder(in)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer g.platform.Close()
	fmt.Println(wordReady)
	_ = os.Stdout.Close()
	g.run(ctx, hear(in))
	return 0
}

// guarding is the guard's end.
type guarding struct {
	order    guardOrder
	platform *platform
	dom      libvirt.Domain
	answered time.Time // when libvirt did, the last time
}

func takeOrder(in *bufio.Reader) (*guarding, error) {
	g := new(guarding)
	text, err := readLine(in, maxOrder)
	if err != nil {
		return nil, fmt.Errorf("read the order: %w", err)
	}
	if err := json.Unmarshal([]byte(text), &g.order); err != nil {
		return nil, errors.New("the order cannot be understood") // its text may hold a secret
	}
	id, err := uuid.Parse(string(g.order.Machine))
	if err != nil {
		return nil, fmt.Errorf("read the order: %w", err)
	}
	if g.platform, err = open(g.order.Config); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), guardStart)
	defer cancel()
	// The thawing connection is the one that has to be there when it counts.
	g.dom, err = ask(ctx, g.platform.safety, func(lv *libvirt.Libvirt) (libvirt.Domain, error) {
		return lv.DomainLookupByUUID(libvirt.UUID(id))
	})
	g.answered = time.Now()
	return g, err
}

// patient reports whether libvirt may still come back.
func (g *guarding) patient() bool { return time.Since(g.answered) < guardPatience }

func readLine(in *bufio.Reader, most int) (string, error) {
	var line []byte
	for {
		part, more, err := in.ReadLine()
		if line = append(line, part...); err != nil || !more {
			return string(line), err
		}
		if len(line) > most {
			return "", errors.New("the line is too long")
		}
	}
}

// hear turns the pipe into a channel, which is closed when the plugin has left or died.
func hear(in *bufio.Reader) <-chan string {
	words := make(chan string)
	go func() {
		defer close(words)
		for {
			word, err := readLine(in, maxOrder)
			if err != nil {
				return
			}
			words <- word
		}
	}()
	return words
}

// run follows the plugin until the snapshot is open, and then the snapshot until it is not.
func (g *guarding) run(ctx context.Context, words <-chan string) {
	var late <-chan time.Time // while the guest may be frozen
	for {
		select {
		case word, alive := <-words:
			switch {
			case !alive:
				grace := guardGrace
				if late != nil {
					g.thaw(ctx)
					grace = 0
				}
				g.watch(ctx, nil, grace)
				return
			case word == wordFreeze:
				late = time.After(g.order.Freeze + guardMargin)
			case word == wordThawed:
				late = nil
			case word == wordWatch:
				ended := make(chan struct{})
				go listen(words, ended)
				g.watch(ctx, ended, 0)
				return
			case word == wordDone:
				return
			}
		case <-late:
			g.thaw(ctx)
			late = nil
		case <-ctx.Done(): // asked to end
			if late != nil {
				g.thaw(context.WithoutCancel(ctx))
			}
			return
		}
	}
}

// listen closes ended if the plugin says that the snapshot was. A plugin that dies says nothing.
func listen(words <-chan string, ended chan<- struct{}) {
	for word := range words {
		if word == wordDone {
			close(ended)
			return
		}
	}
}

// thaw thaws the guest, and again when a freeze that a dying plugin had sent off can have had its effect no more: libvirt
// may serve the two in any order.
func (g *guarding) thaw(ctx context.Context) {
	began := time.Now()
	defer func() { _ = g.platform.restoreAgentPatience(context.WithoutCancel(ctx), g.dom) }() // which the plugin had changed
	for _, wait := range []time.Duration{0, 2 * time.Second, g.order.Freeze} {
		if pause(ctx, wait) != nil {
			return
		}
		for g.platform.thaw(context.WithoutCancel(ctx), g.dom).err != nil {
			// A machine that is off is not frozen.
			state, err := g.platform.state(ctx, g.dom)
			if err == nil {
				g.answered = time.Now() // it is the agent that does not
			}
			if errors.Is(err, sdk.ErrNotFound) || err == nil && state == sdk.StateOff || !g.patient() || time.Since(began) > guardPatience {
				return
			}
			if pause(ctx, time.Second) != nil {
				return
			}
		}
		g.answered = time.Now()
	}
}

// watch looks after the scratch files until the job is gone, and for as long as one may still appear.
func (g *guarding) watch(ctx context.Context, ended <-chan struct{}, grace time.Duration) {
	since, begun := time.Now(), false
	for {
		wait := scratchPause
		j, err := g.platform.currentJob(ctx, g.dom)
		mine := err == nil && j != nil && j.ticket.checkpoint() == g.order.Checkpoint
		switch {
		case mine:
			g.answered, begun = time.Now(), true
			wait = g.spare(ctx, j)
		case errors.Is(err, sdk.ErrNotFound), err == nil && (j != nil || begun),
			err == nil && time.Since(since) >= grace, err != nil && !g.patient():
			return
		}
		select {
		case <-time.After(wait):
		case <-ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

// spare ends the backup if that is better for the guest, and says when to look again. What fails is tried again then.
func (g *guarding) spare(ctx context.Context, j *job) time.Duration {
	limit := g.order.Scratch
	use, err := g.platform.scratchUse(ctx, g.dom, limit)
	if err != nil {
		return scratchPause
	}
	if use.broken(limit) {
		_ = g.platform.breakOff(ctx, g.dom, j, use.reason(limit))
	}
	return use.pause(limit)
}
