package conformance

import (
	"math"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Version is the suite's. It is raised whenever a check is added, removed, or
// finds what it did not find before.
const Version = 4

// ReportFormat is the version of Report as JSON. Fields are only ever added;
// anything else raises it.
const ReportFormat = 1

// Report says what came of one run of the suite, for people who were not there:
// which program, held to which promises, with which result. Its JSON form is
//
//	{
//	  "format": 1,                  ReportFormat
//	  "suite": 4,                   Version
//	  "plugin": {
//	    "name": "mine", "version": "1.0.0", "protocol": 1,
//	    "abilities": ["source"],    what the open platform offered
//	    "sha256": "9f86d0…"         of the program that was run, in lower-case hex
//	  },
//	  "system": "linux/amd64",      where it ran
//	  "started": "2026-01-02T15:04:05Z",
//	  "seconds": 12.345,            the checks together, to the millisecond
//	  "counts": {"kept": 1, "broken": 0, "skipped": 1},
//	  "checks": [                   in the order in which they ran
//	    {
//	      "check": "source/reader", "ability": "source",
//	      "rule": "A reader follows io.ReaderAt, …",
//	      "result": "kept",         or "broken", or "skipped"
//	      "reason": "…",            why it was skipped, and only then
//	      "problems": ["…"],        how the rule was broken, and only then
//	      "unchecked": ["…"],       what was left out for want of a hook, if anything
//	      "seconds": 0.012
//	    }
//	  ]
//	}
//
// Checks of the platform itself have the ability "".
type Report struct {
	Format  int       `json:"format"`
	Suite   int       `json:"suite"`
	Plugin  Subject   `json:"plugin"`
	System  string    `json:"system"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Counts  Counts    `json:"counts"`
	Checks  []Entry   `json:"checks"`
}

// Subject is the plugin that was checked.
type Subject struct {
	Name      string        `json:"name"`
	Version   string        `json:"version"`
	Protocol  int           `json:"protocol"`
	Abilities []sdk.Ability `json:"abilities"`
	SHA256    string        `json:"sha256"`
}

// Counts are how many checks had which result.
type Counts struct {
	Kept    int `json:"kept"`
	Broken  int `json:"broken"`
	Skipped int `json:"skipped"`
}

// Outcome is the result of a check in a word.
type Outcome string

// The outcomes.
const (
	Kept    Outcome = "kept"
	Broken  Outcome = "broken"
	Skipped Outcome = "skipped"
)

// Outcome is the result in a word. Problems count more than a skip: a check may
// find some before it finds that it cannot go on.
func (r Result) Outcome() Outcome {
	switch {
	case len(r.Problems) > 0:
		return Broken
	case r.Skipped != "":
		return Skipped
	}
	return Kept
}

// Entry is one check in a Report.
type Entry struct {
	Check     string      `json:"check"`
	Ability   sdk.Ability `json:"ability"`
	Rule      string      `json:"rule"`
	Result    Outcome     `json:"result"`
	Reason    string      `json:"reason,omitempty"`
	Problems  []string    `json:"problems,omitempty"`
	Unchecked []string    `json:"unchecked,omitempty"`
	Seconds   float64     `json:"seconds"`
}

// NewReport begins the report of a run on a system such as "linux/amd64".
func NewReport(plugin Subject, system string, started time.Time) *Report {
	if plugin.Abilities == nil {
		plugin.Abilities = []sdk.Ability{}
	}
	return &Report{
		Format: ReportFormat, Suite: Version, Plugin: plugin, System: system,
		Started: started.UTC().Truncate(time.Second), Checks: []Entry{},
	}
}

// Add adds a result; Verify calls it.
func (r *Report) Add(result Result) {
	e := Entry{Check: result.Check, Result: result.Outcome(), Problems: result.Problems, Seconds: milliseconds(result.Took.Seconds())}
	for _, c := range Checks() {
		if c.Name == result.Check {
			e.Ability, e.Rule = c.Ability, c.Rule
		}
	}
	switch e.Result {
	case Kept:
		r.Counts.Kept++
	case Broken:
		r.Counts.Broken++
	case Skipped:
		r.Counts.Skipped++
		e.Reason = result.Skipped
	}
	if e.Result != Skipped {
		e.Unchecked = result.Unchecked
	}
	r.Checks = append(r.Checks, e)
	r.Seconds = milliseconds(r.Seconds + result.Took.Seconds())
}

func milliseconds(seconds float64) float64 { return math.Round(seconds*1000) / 1000 }
