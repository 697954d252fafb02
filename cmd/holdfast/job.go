package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/schedule"
	"github.com/holdfast-dr/holdfast/sdk"
)

func jobCommand(a *app) *cobra.Command {
	return noun("job", "What is backed up, when, where to, and for how long",
		"A job belongs to this site: it runs when the provider's console is down, and goes on after a crash or a restart.",
		jobCreateCommand(a), jobUpdateCommand(a), jobListCommand(a), jobShowCommand(a),
		jobEnableCommand(a, "enable"), jobEnableCommand(a, "disable"), jobDeleteCommand(a), jobRunCommand(a))
}

// jobFlags are the flags of create and update.
type jobFlags struct {
	spec       agent.JobSpec
	quiesce    string
	cron, zone string
	byHand     bool
	disabled   bool
}

func (f *jobFlags) register(a *app, cmd *cobra.Command) {
	flags, s := cmd.Flags(), &f.spec
	flags.StringVar(&s.Endpoint, "endpoint", "", "where the machines are")
	flags.StringVar(&s.Provider, "provider", "", "where the backups go (default the only provider)")
	flags.StringVar(&s.Repository, "repository", "", "cloud repository (default the only one)")
	flags.StringSliceVar(&s.Machines.Names, "machine", nil, "machine by name; * and ? match; may be repeated")
	flags.StringSliceVar(&s.Machines.Tags, "tag", nil, "machines that carry this tag")
	flags.BoolVar(&s.Machines.All, "all", false, "every machine of the endpoint, new ones too")
	flags.StringSliceVar(&s.Machines.ExcludeNames, "exclude", nil, "never this machine; * and ? match")
	flags.StringSliceVar(&s.Machines.ExcludeTags, "exclude-tag", nil, "never machines that carry this tag")
	flags.StringSliceVar(&s.Machines.ExcludeDisks, "exclude-disk", nil, "leave out this disk, by name, in every machine")
	flags.StringVar(&f.quiesce, "quiesce", "file-system", "how still a machine is asked to be: none, file-system or application")
	flags.StringVar(&f.cron, "schedule", "", `when: minute hour day month weekday, such as "0 2 * * *" (default by hand only)`)
	flags.StringVar(&f.zone, "zone", "", "time zone of the schedule, such as Europe/Berlin (default this machine's)")
	flags.IntVar(&s.Retention.Points, "keep-points", 0, "keep at least this many of a machine's newest points")
	flags.IntVar(&s.Retention.Days, "keep-days", 0, "keep points at least this many days")
	for name, find := range map[string]names{"endpoint": endpointNames, "provider": providerNames, "repository": repositoryNames,
		"machine": machineNames, "exclude": machineNames} {
		_ = cmd.RegisterFlagCompletionFunc(name, a.completeAll(find))
	}
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions([]string{"none", "file-system", "application"}, cobra.ShellCompDirectiveNoFileComp))
}

// apply takes the flags that were given into a spec.
func (f *jobFlags) apply(given *pflag.FlagSet, into *agent.JobSpec) {
	machines := &into.Machines
	for name, set := range map[string]func(){
		"endpoint":     func() { into.Endpoint = f.spec.Endpoint },
		"provider":     func() { into.Provider = f.spec.Provider },
		"repository":   func() { into.Repository = f.spec.Repository },
		"machine":      func() { machines.Names = f.spec.Machines.Names },
		"tag":          func() { machines.Tags = f.spec.Machines.Tags },
		"all":          func() { machines.All = f.spec.Machines.All },
		"exclude":      func() { machines.ExcludeNames = f.spec.Machines.ExcludeNames },
		"exclude-tag":  func() { machines.ExcludeTags = f.spec.Machines.ExcludeTags },
		"exclude-disk": func() { machines.ExcludeDisks = f.spec.Machines.ExcludeDisks },
		"quiesce":      func() { into.Quiesce = sdk.Quiesce(f.quiesce) },
		"keep-points":  func() { into.Retention.Points = f.spec.Retention.Points },
		"keep-days":    func() { into.Retention.Days = f.spec.Retention.Days },
	} {
		if given.Changed(name) {
			set()
		}
	}
	switch {
	case f.byHand:
		into.Schedule = nil
	case given.Changed("schedule"):
		zone := f.zone
		if zone == "" {
			zone = localZone()
		}
		into.Schedule = &schedule.Schedule{Cron: f.cron, Zone: zone}
	case given.Changed("zone") && into.Schedule != nil:
		into.Schedule.Zone = f.zone
	}
}

// localZone is the name of this machine's time zone, UTC if it has none.
func localZone() string {
	if zone := os.Getenv("TZ"); zone != "" {
		if _, err := time.LoadLocation(zone); err == nil {
			return zone
		}
	}
	target, err := os.Readlink("/etc/localtime")
	if _, zone, ok := strings.Cut(target, "/zoneinfo/"); err == nil && ok {
		if _, err := time.LoadLocation(zone); err == nil {
			return zone
		}
	}
	return "UTC"
}

func jobCreateCommand(a *app) *cobra.Command {
	var f jobFlags
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a job",
		Long: `Create a job: which machines of an endpoint are backed up, when, to which cloud repository, and how long the points are
kept. Machines are chosen by name, tag, or all; an exclusion wins.

A point is forgotten when every rule that is set lets it go, and a machine's newest point never is. Without a rule
everything is kept.`,
		Example: `  holdfast job create nightly --endpoint kvm1 --all --schedule "0 2 * * *" --zone Europe/Berlin --keep-points 14
  holdfast job create databases --endpoint kvm1 --tag db --exclude db-test --quiesce application --schedule "30 * * * *" --keep-days 7
  holdfast job create web --endpoint kvm1 --repository gold --machine 'web-*' --exclude-disk vdb`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := agent.JobSpec{Name: args[0], Enabled: !f.disabled, Quiesce: sdk.QuiesceFileSystem}
			f.apply(cmd.Flags(), &spec)
			c, err := a.agent()
			if err != nil {
				return err
			}
			if spec.Repository == "" {
				if spec.Repository, err = onlyRepository(cmd, c, spec.Provider); err != nil {
					return err
				}
			}
			j, err := read[agent.JobStatus](c.SiteCreateJobWithBody(cmd.Context(), jsonType, content(spec)))
			if err != nil {
				return err
			}
			return showJob(a, j)
		},
	}
	f.register(a, cmd)
	cmd.Flags().BoolVar(&f.disabled, "disabled", false, "the schedule does not start it until it is enabled")
	_ = cmd.MarkFlagRequired("endpoint")
	return cmd
}

// onlyRepository is the cloud repository when there is no choice.
func onlyRepository(cmd *cobra.Command, c *client.Client, provider string) (string, error) {
	all, err := read[[]agent.ConnectionStatus](c.SiteListProviders(cmd.Context()))
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", withHint(errors.New("this site is not connected to a provider"), "connect it: holdfast agent connect ADDRESS --fingerprint FINGERPRINT")
	}
	var found []string
	for _, p := range all {
		if provider != "" && !strings.EqualFold(provider, p.Name) && provider != p.ID {
			continue
		}
		for _, r := range p.Repositories {
			found = append(found, r.Name)
		}
	}
	switch len(found) {
	case 0:
		return "", withHint(errors.New("there is no cloud repository that could be reached"), "see why: holdfast agent status")
	case 1:
		return found[0], nil
	}
	return "", withHint(usagef(cmd, "there are several cloud repositories: %s", strings.Join(found, ", ")), "choose one with --repository")
}

func jobUpdateCommand(a *app) *cobra.Command {
	var f jobFlags
	cmd := &cobra.Command{
		Use:   "update NAME",
		Short: "Change a job",
		Long:  "Change what the flags name; everything else stays. A list of names replaces the one before.",
		Example: `  holdfast job update nightly --schedule "30 1 * * *" --keep-points 30
  holdfast job update nightly --by-hand`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(jobNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			j, err := read[agent.JobStatus](c.SiteGetJob(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			spec := j.JobSpec
			f.apply(cmd.Flags(), &spec)
			if j, err = read[agent.JobStatus](c.SiteUpdateJobWithBody(cmd.Context(), j.ID, jsonType, content(spec))); err != nil {
				return err
			}
			return showJob(a, j)
		},
	}
	f.register(a, cmd)
	cmd.Flags().BoolVar(&f.byHand, "by-hand", false, "take the schedule away")
	cmd.MarkFlagsMutuallyExclusive("by-hand", "schedule")
	return cmd
}

func jobListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the jobs, how they last went, and when they run next",
		Example: `  holdfast job list
  holdfast job list -o json | jq -r '.[] | select(.last.state == "failed") | .name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			jobs, err := read[[]agent.JobStatus](c.SiteListJobs(cmd.Context()))
			if err != nil {
				return err
			}
			return list(a, jobs,
				column[agent.JobStatus]{title: "job", value: func(j agent.JobStatus) string { return j.Name }},
				column[agent.JobStatus]{title: "endpoint", value: func(j agent.JobStatus) string { return j.Endpoint }},
				column[agent.JobStatus]{title: "machines", value: func(j agent.JobStatus) string { return selectionText(j.Machines) }},
				column[agent.JobStatus]{title: "to", value: func(j agent.JobStatus) string { return j.Provider + "/" + j.Repository }},
				column[agent.JobStatus]{title: "last", value: lastText},
				column[agent.JobStatus]{title: "next", value: scheduleText})
		},
	}
}

func selectionText(s agent.Selection) string {
	var words []string
	if s.All {
		words = append(words, "all")
	}
	words = append(words, s.Names...)
	for _, tag := range s.Tags {
		words = append(words, "tag "+tag)
	}
	text := strings.Join(words, ", ")
	except := append([]string(nil), s.ExcludeNames...)
	for _, tag := range s.ExcludeTags {
		except = append(except, "tag "+tag)
	}
	if len(except) > 0 {
		text += " but not " + strings.Join(except, ", ")
	}
	return text
}

func lastText(j agent.JobStatus) string {
	if j.Last == nil {
		return "never run"
	}
	if !j.Last.State.Final() {
		return string(j.Last.State) + " since " + timeText(j.Last.Created)
	}
	return string(j.Last.State) + " " + timeText(j.Last.Ended)
}

// scheduleText is when a job runs next, or why it does not by itself.
func scheduleText(j agent.JobStatus) string {
	switch {
	case j.Schedule == nil:
		return "by hand"
	case !j.Enabled:
		return "disabled"
	}
	return timeText(j.Next)
}

func nextText(j agent.JobStatus) string {
	if next := scheduleText(j); j.Schedule != nil && j.Enabled {
		return ", next " + next
	}
	return ""
}

func showJob(a *app, j agent.JobStatus) error {
	when := "by hand"
	if j.Schedule != nil {
		when = j.Schedule.String()
	}
	fields := []field{
		{"job", j.Name}, {"endpoint", j.Endpoint}, {"machines", selectionText(j.Machines)},
		{"without disks", strings.Join(j.Machines.ExcludeDisks, ", ")}, {"quiesce", string(j.Quiesce)},
		{"to", j.Provider + "/" + j.Repository}, {"schedule", when}, {"enabled", yesNo(j.Enabled)}, {"next", timeText(j.Next)},
		{"keep", retentionText(j.Retention)}, {"last", lastText(j)},
	}
	if j.Last != nil {
		fields = append(fields, field{"last run", j.Last.ID})
		if j.Last.Failure != nil {
			fields = append(fields, field{"because", j.Last.Failure.Message}, field{"hint", j.Last.Failure.Hint})
		}
	}
	return show(a, j, append(fields, field{"id", j.ID})...)
}

func retentionText(r agent.Retention) string {
	var words []string
	if r.Points > 0 {
		words = append(words, strconv.Itoa(r.Points)+" points")
	}
	if r.Days > 0 {
		words = append(words, strconv.Itoa(r.Days)+" days")
	}
	if len(words) == 0 {
		return "everything"
	}
	return "at least " + strings.Join(words, " and ")
}

func jobShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a job",
		Example:           "  holdfast job show nightly",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(jobNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			j, err := read[agent.JobStatus](c.SiteGetJob(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			return showJob(a, j)
		},
	}
}

func jobEnableCommand(a *app, verb string) *cobra.Command {
	short := map[string]string{"enable": "Let the schedule start a job", "disable": "Keep the schedule from starting a job; by hand it still runs"}
	return &cobra.Command{
		Use:               verb + " NAME",
		Short:             short[verb],
		Example:           "  holdfast job " + verb + " nightly",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(jobNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			set := c.SiteEnableJob
			if verb == "disable" {
				set = c.SiteDisableJob
			}
			j, err := read[agent.JobStatus](set(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			return showJob(a, j)
		},
	}
}

func jobDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete a job; the points that it made stay",
		Example:           "  holdfast job delete nightly",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(jobNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			if err := done(c.SiteDeleteJob(cmd.Context(), args[0])); err != nil {
				return err
			}
			a.say("job %s is deleted; its points stay, and nothing thins them out any more", args[0])
			return nil
		},
	}
}

func jobRunCommand(a *app) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:   "run NAME",
		Short: "Start a job now",
		Long: `Start a job now. On a terminal its progress is shown until it ends; interrupting that does not stop the run. A failed run
makes the command exit with 1, a run with warnings with 0.`,
		Example: `  holdfast job run nightly
  holdfast job run nightly --wait -o json | jq .machines
  holdfast job run nightly --no-wait && holdfast run watch last`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(jobNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			run, err := readRun(c.SiteRunJob(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			return a.started(cmd.Context(), c, run, w)
		},
	}
	w.register(cmd)
	return cmd
}
