package tenant

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// forbidden are the characters that tools on either side would misread in a
// tenant's name: path and domain separators, wildcards and quotes.
const forbidden = `+][,\/:*?"<>|=;@`

// reserved are device names on Windows, where tenants run their tools.
var reserved = func() map[string]bool {
	names := map[string]bool{"con": true, "prn": true, "aux": true, "nul": true}
	for i := '1'; i <= '9'; i++ {
		names["com"+string(i)], names["lpt"+string(i)] = true, true
	}
	return names
}()

// CheckName says whether a name may be given to a tenant.
func CheckName(name string) error {
	invalid := func(format string, args ...any) error {
		return &InvalidError{Field: "name", Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case name == "":
		return invalid("must not be empty")
	case !utf8.ValidString(name):
		return invalid("is not valid UTF-8")
	case utf8.RuneCountInString(name) > MaxName:
		return invalid("is longer than %d characters", MaxName)
	case strings.TrimSpace(name) != name:
		return invalid("must not begin or end with a space")
	case strings.HasSuffix(name, "."):
		return invalid("must not end in a dot")
	}
	for _, r := range name {
		if strings.ContainsRune(forbidden, r) {
			return invalid("must not contain %q (none of %s is allowed)", string(r), forbidden)
		}
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf) {
			return invalid("must not contain control characters")
		}
	}
	// Windows takes "nul.txt" for the device, too.
	base, _, _ := strings.Cut(strings.ToLower(name), ".")
	if reserved[strings.TrimSpace(base)] {
		return invalid("%q is a reserved device name on Windows", name)
	}
	return nil
}

// Fold is the form of a name in which two names are compared: a tenant "Acme"
// and another "ACME" would be a trap for whoever restores.
func Fold(name string) string { return strings.ToLower(name) }

// Check says whether a tenant keeps every rule.
func (t Tenant) Check() error {
	if err := CheckName(t.Name); err != nil {
		return err
	}
	switch t.Type {
	case Standalone:
	case CloudDirector:
		return &InvalidError{Field: "type", Reason: "Cloud Director tenants need the vcd plugin, which this provider does not have enabled"}
	default:
		return &InvalidError{Field: "type", Reason: fmt.Sprintf("%q is unknown; the type is %q", t.Type, Standalone)}
	}
	switch {
	case utf8.RuneCountInString(t.Description) > MaxDescription || !utf8.ValidString(t.Description):
		return &InvalidError{Field: "description", Reason: fmt.Sprintf("must be text of at most %d characters", MaxDescription)}
	case t.MaxTasks < 1 || t.MaxTasks > MaxTasks:
		return &InvalidError{Field: "tasks", Reason: fmt.Sprintf("must be between 1 and %d", MaxTasks)}
	case !t.LeaseEnd.IsZero() && (t.LeaseEnd.Year() < 2000 || t.LeaseEnd.Year() > 9999):
		return &InvalidError{Field: "lease end", Reason: "must be a date between 2000 and 9999; leave it out for no end"}
	}
	return nil
}

// Check says whether b is one of the choices.
func (b Backups) Check() error {
	switch b {
	case BackupsRefuse, BackupsKeep, BackupsDelete:
		return nil
	}
	return &InvalidError{Field: "backups", Reason: fmt.Sprintf("must be %q or %q", BackupsKeep, BackupsDelete)}
}
