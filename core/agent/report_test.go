package agent

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/core/job"
)

func TestShortenedTextsStayText(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"short", "short"}, {"exactly 10", "exactly 10"}, {"more than ten", "more th…"}, {"äöüäöüäöü", "äöü…"},
	} {
		if got := shortened(c.text, 10); got != c.want || !utf8.ValidString(got) || len(got) > 10 {
			t.Errorf("%q shortened to 10 bytes: %q, want %q", c.text, got, c.want)
		}
	}
}

func TestReportOfARunThatNeverBegan(t *testing.T) {
	created := time.Date(2027, 3, 1, 2, 0, 0, 0, time.UTC)
	e := eventOf(job.Run{ID: "r", Kind: RunBackup, State: job.Failed, Created: created, Ended: created.Add(time.Minute),
		Failure: &job.Failure{Message: strings.Repeat("x", 5000), Side: "tenant"}}, "nightly", created.Add(time.Hour))
	if !e.Started.Equal(created) || !e.Ended.Equal(created.Add(time.Minute)) || e.Job != "nightly" || e.State != "failed" || e.Side != "tenant" {
		t.Errorf("reported as %+v", e)
	}
}

func TestHeardEndsAreForgottenWithTheirRuns(t *testing.T) {
	var r reports
	r.note("a")
	r.note("b")
	r.keepOnly([]job.Run{{ID: "b"}, {ID: "c"}})
	if r.has("a") || !r.has("b") || r.has("c") {
		t.Errorf("remembered: %v", r.heard)
	}
}
