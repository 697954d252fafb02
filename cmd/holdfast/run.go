package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/job"
)

// runView is a run as commands show it: the fields of both sides, and the
// answer as it came, for scripts.
type runView struct {
	agent.RunStatus
	Subject string          `json:"subject"`
	Result  json.RawMessage `json:"result"`
	raw     json.RawMessage
}

// UnmarshalJSON keeps the answer besides reading it.
func (v *runView) UnmarshalJSON(b []byte) error {
	type plain runView
	if err := json.Unmarshal(b, (*plain)(v)); err != nil {
		return err
	}
	v.raw = append(json.RawMessage(nil), b...)
	return nil
}

// MarshalJSON gives back the answer as it came.
func (v runView) MarshalJSON() ([]byte, error) { return v.raw, nil }

// about is what the run is about, for people.
func (v runView) about() string {
	if v.Name != "" {
		return v.Name
	}
	return v.Subject
}

// runs are the operations about runs, which both sides have.
type runs struct {
	list   func(ctx context.Context, job, before string, limit int64) ([]runView, error)
	get    func(ctx context.Context, id string) (*http.Response, error)
	watch  func(ctx context.Context, id string) (*http.Response, error)
	cancel func(ctx context.Context, id string) (*http.Response, error)
	// again is the command that shows a run.
	again string
}

func siteRuns(c *client.Client) runs {
	return runs{
		list: func(ctx context.Context, job, before string, limit int64) ([]runView, error) {
			return read[[]runView](c.SiteListRuns(ctx, &client.SiteListRunsParams{Job: given(job), Before: given(before), Limit: given(limit)}))
		},
		get:    func(ctx context.Context, id string) (*http.Response, error) { return c.SiteGetRun(ctx, id) },
		watch:  func(ctx context.Context, id string) (*http.Response, error) { return c.SiteWatchRun(ctx, id) },
		cancel: func(ctx context.Context, id string) (*http.Response, error) { return c.SiteCancelRun(ctx, id) },
		again:  "holdfast run watch",
	}
}

func providerRuns(c *client.Client) runs {
	return runs{
		list: func(ctx context.Context, about, before string, limit int64) ([]runView, error) {
			page, err := read[struct {
				Items []runView `json:"items"`
			}](c.ListRuns(ctx, &client.ListRunsParams{Subject: given(about), Before: given(before), Limit: given(limit)}))
			return page.Items, err
		},
		get:    func(ctx context.Context, id string) (*http.Response, error) { return c.GetRun(ctx, id) },
		watch:  func(ctx context.Context, id string) (*http.Response, error) { return c.WatchRun(ctx, id) },
		cancel: func(ctx context.Context, id string) (*http.Response, error) { return c.CancelRun(ctx, id) },
		again:  "holdfast run watch --provider",
	}
}

// runs chooses the side: the local agent if its socket is there, else the
// provider that the user signed in to.
func (a *app) runs(provider bool) (runs, error) {
	if !provider && (a.socket != "" || fileExists(a.socketPath())) {
		c, err := a.agent()
		return siteRuns(c), err
	}
	if !provider {
		if _, err := a.connection(); err != nil {
			return runs{}, withHint(errors.New("there is no agent here, and nobody is signed in to a provider"),
				"start the agent: holdfast agent serve; or sign in: holdfast login ADDRESS --fingerprint FINGERPRINT")
		}
	}
	c, err := a.provider()
	return providerRuns(c), err
}

func readRun(r *http.Response, err error) (runView, error) { return read[runView](r, err) }

func runCommand(a *app) *cobra.Command {
	var provider bool
	cmd := noun("run", "Backups, restores and other long work, as it goes and as it went",
		`A run is durable: after a crash or a restart it goes on where it was. At a tenant's site these are backups, restores and
verifications; at the provider, with --provider or where no agent is, verification, collection and import.`,
		runListCommand(a, &provider), runShowCommand(a, &provider), runWatchCommand(a, &provider), runCancelCommand(a, &provider))
	cmd.PersistentFlags().BoolVar(&provider, "provider", false, "the provider's runs, also where an agent is")
	return cmd
}

func runListCommand(a *app, provider *bool) *cobra.Command {
	var about, before string
	var limit int64
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List runs, newest first",
		Example: `  holdfast run list
  holdfast run list --job nightly --limit 7
  holdfast run list --provider -o json | jq -r '.[] | select(.state == "failed") | .id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			side, err := a.runs(*provider)
			if err != nil {
				return err
			}
			all, err := side.list(cmd.Context(), about, before, limit)
			if err != nil {
				return err
			}
			return list(a, all,
				column[runView]{title: "run", value: func(r runView) string { return r.ID }},
				column[runView]{title: "kind", value: func(r runView) string { return string(r.Kind) }},
				column[runView]{title: "of", value: runView.about},
				column[runView]{title: "state", value: func(r runView) string { return string(r.State) }},
				column[runView]{title: "started", value: func(r runView) string { return timeText(r.Started) }},
				column[runView]{title: "took", right: true, value: func(r runView) string { return tookText(r) }},
				column[runView]{title: "sent", right: true, value: func(r runView) string { return sentText(r) }},
				column[runView]{title: "why", value: whyText})
		},
	}
	cmd.Flags().StringVar(&about, "job", "", "only runs of this job; at the provider, of this subject")
	cmd.Flags().StringVar(&before, "before", "", "continue after this run")
	cmd.Flags().Int64Var(&limit, "limit", 20, "how many at most")
	_ = cmd.RegisterFlagCompletionFunc("job", a.completeAll(jobNames))
	return cmd
}

func tookText(r runView) string {
	if r.Started.IsZero() || r.Ended.IsZero() {
		return ""
	}
	return durationText(r.Ended.Sub(r.Started).Seconds())
}

func sentText(r runView) string {
	sent := r.Progress.SentBytes
	for _, m := range r.Machines {
		sent += m.SentBytes
	}
	if r.Kind != agent.RunBackup {
		return ""
	}
	if len(r.Machines) > 0 {
		sent -= r.Progress.SentBytes
	}
	return bytesText(sent)
}

func whyText(r runView) string {
	switch {
	case r.Failure != nil:
		return r.Failure.Message
	case len(r.Warnings) > 0:
		return r.Warnings[0]
	}
	return ""
}

func runShowCommand(a *app, provider *bool) *cobra.Command {
	return &cobra.Command{
		Use:               "show RUN",
		Short:             "Show a run and what it came to",
		Example:           "  holdfast run show last\n  holdfast run show 01932f6e-… -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(runIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			side, err := a.runs(*provider)
			if err != nil {
				return err
			}
			run, err := readRun(side.get(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			return a.showRun(run)
		},
	}
}

func runWatchCommand(a *app, provider *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "watch RUN",
		Short: "Watch a run until it ends",
		Long:  "Watch a run until it ends, and exit as it did: with 1 if it failed. Interrupting this does not stop the run.",
		Example: `  holdfast run watch last
  holdfast run watch 01932f6e-… -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(runIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			side, err := a.runs(*provider)
			if err != nil {
				return err
			}
			run, err := readRun(side.get(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			return a.watchRun(cmd.Context(), side, run)
		},
	}
}

func runCancelCommand(a *app, provider *bool) *cobra.Command {
	return &cobra.Command{
		Use:               "cancel RUN",
		Short:             "Ask a run to stop",
		Long:              "Ask a run to stop. What arrived at the provider stays there for the next run to find.",
		Example:           "  holdfast run cancel last",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(runIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			side, err := a.runs(*provider)
			if err != nil {
				return err
			}
			run, err := readRun(side.get(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			if run, err = readRun(side.cancel(cmd.Context(), run.ID)); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(run)
			}
			a.say("run %s is asked to stop", run.ID)
			return nil
		},
	}
}

// showRun prints a run: what it is, then its machines or what it restored.
func (a *app) showRun(r runView) error {
	if a.output == "json" {
		return a.json(r)
	}
	fields := []field{
		{"run", r.ID}, {"kind", string(r.Kind)}, {"of", r.about()}, {"state", string(r.State)},
		{"started", timeText(r.Started)}, {"ended", timeText(r.Ended)}, {"took", tookText(r)},
	}
	if !r.State.Final() {
		fields = append(fields, field{"phase", r.Progress.Phase}, field{"progress", progressText(r.Progress)})
	}
	if r.Attempts > 1 {
		fields = append(fields, field{"attempts", fmt.Sprintf("%d (it was interrupted and went on)", r.Attempts)})
	}
	fields = append(fields, restoredFields(r)...)
	if r.Failure != nil {
		fields = append(fields, field{"because", r.Failure.Message}, field{"hint", r.Failure.Hint}, field{"cause lies at", r.Failure.Side})
	}
	for _, w := range r.Warnings {
		fields = append(fields, field{"warning", w})
	}
	switch account := accountFields(r); {
	case account != nil:
		fields = append(fields, account...)
	case len(r.Result) > 0 && len(r.Machines) == 0:
		fields = append(fields, resultFields(r.Result)...)
	}
	if err := show(a, r, fields...); err != nil {
		return err
	}
	if len(r.Machines) == 0 {
		return nil
	}
	fmt.Fprintln(a.out)
	return a.listResults(r.Machines)
}

// accountFields are the books of a cloud repository, if the run made them.
func accountFields(r runView) []field {
	var v accountResult
	if r.Kind != api.RunAccount || json.Unmarshal(r.Result, &v) != nil {
		return nil
	}
	balance := "yes: what is charged is what is there"
	switch {
	case v.Busy:
		balance = "not told: it was written to all the time"
	case !v.Balanced:
		balance = fmt.Sprintf("no: charged are %d bytes of points and %d that are in none", v.ChargedBytes, v.ChargedPendingBytes)
	}
	exact := func(n int64) string { return fmt.Sprintf("%s (%d)", bytesText(n), n) }
	return []field{
		{"live", exact(v.LiveBytes)}, {"pending", exact(v.PendingBytes)}, {"bin", exact(v.BinBytes)}, {"waste", exact(v.WasteBytes)},
		{"overhead", exact(v.OverheadBytes)}, {"on disk", exact(v.TotalBytes)}, {"in the spool", exact(v.SpooledBytes)},
		{"objects", fmt.Sprintf("%d, of them %d packs with %d records", v.Objects, v.Packs, v.Records)}, {"balanced", balance},
	}
}

func restoredFields(r runView) []field {
	var fields []field
	if res := r.Restored; res != nil {
		fields = append(fields, field{"restored machine", res.Machine}, field{"file", res.File}, field{"point", string(res.Point)},
			field{"size", bytesText(res.SizeBytes)}, field{"fetched", someBytes(res.FetchedBytes)}, field{"written", bytesText(res.WrittenBytes)},
			field{"bottleneck", res.Bottleneck})
	}
	if res := r.Verified; res != nil {
		state := "every chunk opens and is what was backed up"
		if len(res.Damaged) > 0 {
			state = fmt.Sprintf("%d damaged ranges", len(res.Damaged))
		}
		fields = append(fields, field{"verified", fmt.Sprintf("%d chunks, %s fetched: %s", res.Chunks, bytesText(res.FetchedBytes), state)})
		for _, d := range res.Damaged {
			fields = append(fields, field{"damaged", fmt.Sprintf("%s at %d, %s: %s", d.Disk, d.Offset, bytesText(d.Length), d.Reason)})
		}
	}
	return fields
}

// someBytes is a size, "" for none.
func someBytes(n int64) string {
	if n == 0 {
		return ""
	}
	return bytesText(n)
}

func (a *app) listResults(results []agent.MachineResult) error {
	err := list(a, results,
		column[agent.MachineResult]{title: "machine", value: func(m agent.MachineResult) string { return m.Machine }},
		column[agent.MachineResult]{title: "state", value: func(m agent.MachineResult) string { return string(m.State) }},
		column[agent.MachineResult]{title: "kind", value: func(m agent.MachineResult) string { return string(m.Kind) }},
		column[agent.MachineResult]{title: "size", right: true, value: func(m agent.MachineResult) string { return bytesText(m.SizeBytes) }},
		column[agent.MachineResult]{title: "read", right: true, value: func(m agent.MachineResult) string { return bytesText(m.ReadBytes) }},
		column[agent.MachineResult]{title: "sent", right: true, value: func(m agent.MachineResult) string { return bytesText(m.SentBytes) }},
		column[agent.MachineResult]{title: "took", right: true, value: func(m agent.MachineResult) string { return durationText(m.Seconds) }},
		column[agent.MachineResult]{title: "bottleneck", value: func(m agent.MachineResult) string { return m.Bottleneck }},
		column[agent.MachineResult]{title: "point", value: func(m agent.MachineResult) string { return string(m.Point) }})
	if err != nil {
		return err
	}
	for _, m := range results {
		for _, w := range m.Warnings {
			a.say("warning: %s: %s", m.Machine, w)
		}
		for _, d := range m.LeftOut {
			a.say("%s: disk %s is not in the point: %s", m.Machine, d.Disk, d.Reason)
		}
		if m.Failure != nil {
			a.say("%s: %s", m.Machine, strings.TrimSpace(m.Failure.Message+"\n  hint: "+m.Failure.Hint))
		}
	}
	return nil
}

// outcome is the error of a run that did not succeed.
func outcome(r runView) error {
	switch r.State {
	case job.Failed:
		if r.Failure == nil {
			return fmt.Errorf("run %s failed", r.ID)
		}
		return withHint(fmt.Errorf("the run failed: %s", r.Failure.Message), "%s", r.Failure.Hint)
	case job.Cancelled:
		return fmt.Errorf("run %s was cancelled", r.ID)
	}
	return nil
}
