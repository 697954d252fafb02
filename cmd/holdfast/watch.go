package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/gateway"
)

// waiting says whether a command that starts a run waits for its end.
type waiting struct{ wait, noWait bool }

func (w *waiting) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, "wait for the end (default on a terminal)")
	cmd.Flags().BoolVar(&w.noWait, "no-wait", false, "only start it")
	cmd.MarkFlagsMutuallyExclusive("wait", "no-wait")
}

// started waits for a run that a command started, or says how to.
func (a *app) started(ctx context.Context, c *client.Client, run runView, w waiting) error {
	if w.wait || !w.noWait && isTerminal(a.out) {
		return a.watchRun(ctx, siteRuns(c), run)
	}
	if a.output == "json" {
		return a.json(run)
	}
	a.say("run %s has started; watch it: holdfast run watch %s", run.ID, run.ID)
	return nil
}

// How long a stream that broke is opened again: an agent that restarts is back
// within it.
const (
	watchPatience = time.Minute
	watchPause    = time.Second
)

// watchRun shows a run until it ends, prints what it came to, and fails if it
// did.
func (a *app) watchRun(ctx context.Context, side runs, run runView) error {
	meter := a.newMeter(run)
	last, err := follow(ctx, side, run, meter.show)
	meter.end()
	if err != nil {
		if ctx.Err() != nil && !last.State.Final() {
			a.note("The run goes on. See it again: %s %s; stop it: holdfast run cancel %s", side.again, run.ID, run.ID)
		}
		return err
	}
	if err := a.showRun(last); err != nil {
		return err
	}
	return outcome(last)
}

// follow reads a run's events until its final state. A stream that breaks is
// opened again; each begins with the run as it is.
func follow(ctx context.Context, side runs, run runView, notice func(runView)) (runView, error) {
	heard := time.Now()
	for {
		response, err := side.watch(ctx, run.ID)
		err = watch(response, err, func(event string, data []byte) error {
			heard = time.Now()
			switch event {
			case "run":
				if err := json.Unmarshal(data, &run); err != nil {
					return fmt.Errorf("read run: %w", err)
				}
				notice(run)
				if run.State.Final() {
					return errStop
				}
			case "problem":
				p := new(gateway.Problem)
				if err := json.Unmarshal(data, p); err != nil {
					return fmt.Errorf("read problem: %w", err)
				}
				return p
			}
			return nil
		})
		switch {
		case run.State.Final():
			return run, nil
		case ctx.Err() != nil:
			return run, ctx.Err()
		case !broken(err) || time.Since(heard) > watchPatience:
			return run, err
		}
		select {
		case <-ctx.Done():
			return run, ctx.Err()
		case <-time.After(watchPause):
		}
	}
}

// broken says whether a stream ended because the other side went away.
func broken(err error) bool {
	_, network := errors.AsType[*net.OpError](err)
	return network || err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

// meter shows a run's progress on standard error: a bar on a terminal, a line
// for each phase elsewhere, nothing beside JSON.
type meter struct {
	app   *app
	last  atomic.Pointer[runView]
	pool  *mpb.Progress
	bar   *mpb.Bar
	phase string
}

func (a *app) newMeter(run runView) *meter {
	m := &meter{app: a}
	m.last.Store(&run)
	if a.output == "json" || !isTerminal(a.err) {
		return m
	}
	m.pool = mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(24), mpb.WithRefreshRate(200*time.Millisecond))
	m.bar = m.pool.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return printable(m.last.Load().phaseText()) + " " })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return " " + progressText(m.last.Load().Progress) })))
	return m
}

// phaseText is what the run is doing now.
func (v *runView) phaseText() string {
	if v.Progress.Phase == "" {
		return string(v.State)
	}
	return v.Progress.Phase
}

func (m *meter) show(run runView) {
	m.last.Store(&run)
	switch {
	case m.bar != nil:
		m.bar.SetTotal(max(run.Progress.TotalBytes, 1), false)
		m.bar.SetCurrent(min(run.Progress.DoneBytes, max(run.Progress.TotalBytes, 1)))
	case m.app.output != "json" && run.phaseText() != m.phase:
		m.phase = run.phaseText()
		m.app.note("%s", m.phase)
	}
}

// end takes the bar off the terminal.
func (m *meter) end() {
	if m.bar != nil {
		m.bar.Abort(true)
		m.pool.Wait()
	}
}

// progressText is done and total, rate, what is left, and what slows it down.
func progressText(p agent.RunProgress) string {
	text := bytesText(p.DoneBytes)
	if p.TotalBytes > 0 {
		text += " of " + bytesText(p.TotalBytes)
	}
	if p.Rate > 0 {
		text += fmt.Sprintf(", %s/s", bytesText(int64(p.Rate)))
	}
	if p.ETASeconds > 0 {
		text += ", " + durationText(p.ETASeconds) + " left"
	}
	if p.Bottleneck != "" {
		text += ", bottleneck " + p.Bottleneck
	}
	return text
}

// durationText is a length of time for people.
func durationText(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d <= 0:
		return ""
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
