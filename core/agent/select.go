package agent

import (
	"path"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

// Check says whether the selection can match anything at all.
func (s Selection) Check() error {
	if !s.All && len(s.Names) == 0 && len(s.Tags) == 0 {
		return &tenant.InvalidError{Field: "machines", Reason: "name machines, tags, or all"}
	}
	for _, pattern := range slices.Concat(s.Names, s.ExcludeNames, s.ExcludeDisks) {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return &tenant.InvalidError{Field: "machines", Reason: "name pattern " + pattern + " cannot be understood"}
		}
	}
	return nil
}

// Covers says whether a machine belongs to the selection. An exclusion wins.
func (s Selection) Covers(m sdk.Machine) bool {
	if matchesAny(s.ExcludeNames, m.Name) || sharesAny(s.ExcludeTags, m.Tags) {
		return false
	}
	return s.All || matchesAny(s.Names, m.Name) || sharesAny(s.Tags, m.Tags)
}

// Disks lists the disks of a covered machine that are to be backed up, and for
// each of the others why it is not.
func (s Selection) Disks(m sdk.Machine) (disks []sdk.DiskID, left map[string]string) {
	left = make(map[string]string)
	for _, d := range m.Disks {
		switch {
		case d.Skip != "":
			left[d.Name] = d.Skip
		case matchesAny(s.ExcludeDisks, d.Name):
			left[d.Name] = "excluded by the job"
		default:
			disks = append(disks, d.ID)
		}
	}
	return disks, left
}

func matchesAny(patterns []string, name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(strings.ToLower(p), name)
		return err == nil && ok
	})
}

func sharesAny(wanted, tags []string) bool {
	return slices.ContainsFunc(wanted, func(w string) bool {
		return slices.ContainsFunc(tags, func(t string) bool { return strings.EqualFold(w, t) })
	})
}
