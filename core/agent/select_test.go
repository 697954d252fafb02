package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

func TestSelectionCovers(t *testing.T) {
	web := sdk.Machine{Name: "Web-01", Tags: []string{"Gold", "dmz"}}
	for name, c := range map[string]struct {
		selection Selection
		want      bool
	}{
		"by name, other case":       {Selection{Names: []string{"web-01"}}, true},
		"by pattern":                {Selection{Names: []string{"web-*"}}, true},
		"by another name":           {Selection{Names: []string{"db-*"}}, false},
		"by tag":                    {Selection{Tags: []string{"gold"}}, true},
		"all":                       {Selection{All: true}, true},
		"all but this name":         {Selection{All: true, ExcludeNames: []string{"web-0?"}}, false},
		"by name but excluded tag":  {Selection{Names: []string{"web-01"}, ExcludeTags: []string{"DMZ"}}, false},
		"empty selection, no match": {Selection{}, false},
	} {
		if got := c.selection.Covers(web); got != c.want {
			t.Errorf("%s: Covers = %v, want %v", name, got, c.want)
		}
	}
}

func TestSelectionSaysWhyDisksAreLeftOut(t *testing.T) {
	m := sdk.Machine{Disks: []sdk.Disk{{ID: "1", Name: "vda"}, {ID: "2", Name: "vdb"}, {ID: "3", Name: "sda", Skip: "a CD-ROM"}}}
	disks, left := Selection{All: true, ExcludeDisks: []string{"vdb"}}.Disks(m)
	if !slices.Equal(disks, []sdk.DiskID{"1"}) {
		t.Errorf("disks = %v, want only vda", disks)
	}
	if left["vdb"] == "" || left["sda"] != "a CD-ROM" {
		t.Errorf("left out = %v, want a reason for vdb and sda", left)
	}
}

func TestRetention(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	var points []Kept // one a day, newest first: d0 is today's
	for i, id := range []point.ID{"d0", "d1", "d2", "d3", "d4", "d5"} {
		points = append(points, Kept{ID: id, Taken: now.AddDate(0, 0, -i).Add(-time.Hour)})
	}
	for name, c := range map[string]struct {
		rule Retention
		want []point.ID
	}{
		"no rule keeps everything":     {Retention{}, nil},
		"two points":                   {Retention{Points: 2}, []point.ID{"d2", "d3", "d4", "d5"}},
		"three days":                   {Retention{Days: 3}, []point.ID{"d3", "d4", "d5"}},
		"either rule keeps a point":    {Retention{Points: 5, Days: 2}, []point.ID{"d5"}},
		"more points than there are":   {Retention{Points: 9}, nil},
		"days longer than the history": {Retention{Points: 1, Days: 30}, nil},
		"one point never goes to none": {Retention{Points: 1}, []point.ID{"d1", "d2", "d3", "d4", "d5"}},
	} {
		if got := c.rule.Expired(points, now); !slices.Equal(got, c.want) {
			t.Errorf("%s: expired %v, want %v", name, got, c.want)
		}
	}
	// The site's clock jumps ahead by ten years: the provider's says what is old.
	if got := (Retention{Days: 30}).Expired(points, earlier(now.AddDate(10, 0, 0), now)); got != nil {
		t.Errorf("a clock that jumped ahead frees %v", got)
	}
	if got := earlier(now, now.AddDate(10, 0, 0)); !got.Equal(now) {
		t.Errorf("the provider's clock that jumped ahead counts: %s", got)
	}
	old := []Kept{{ID: "only", Taken: now.AddDate(-3, 0, 0)}}
	if got := (Retention{Days: 1}).Expired(old, now); got != nil {
		t.Errorf("the newest point expired: %v", got)
	}
}

// The id of an attempt whose commit was refused, or never answered, is used up:
// the next attempt must not depend on it.
func TestEachAttemptMakesAPointOfItsOwn(t *testing.T) {
	run := job.Run{ID: uuid.Must(uuid.NewV7()).String()}
	seen := map[point.ID]bool{}
	for attempt := range 5 {
		for _, m := range []sdk.MachineID{"a", "b"} {
			id := pointID(run, m, attempt)
			if parsed, err := uuid.Parse(string(id)); err != nil || parsed.Version() != 7 || parsed.Variant() != uuid.RFC4122 {
				t.Errorf("%s is not a UUID of version 7: %v", id, err)
			}
			if seen[id] || id != pointID(run, m, attempt) || id[:13] != point.ID(run.ID[:13]) {
				t.Errorf("attempt %d of %s: %s", attempt, m, id)
			}
			seen[id] = true
		}
	}
}
