package quota

import (
	"errors"
	"testing"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

func TestWhoMayTakeBackups(t *testing.T) {
	acme := tenant.Tenant{ID: "1", Name: "Acme"}
	for name, c := range map[string]struct {
		whose   string
		whoseID tenant.ID
		said    string
		ok      bool
	}{
		"its own, after a new database":   {"ACME", "7", "", true},
		"its own, renamed since":          {"Acme Ltd", "1", "", true},
		"another's":                       {"Other", "7", "", false},
		"another's, said":                 {"Other", "7", "other", true},
		"another's, wrongly said":         {"Other", "7", "Acme", false},
		"its own, wrongly said":           {"Acme", "1", "Other", false},
		"nobody knows":                    {"", "", "", false},
		"nobody knows, and it is said so": {"", "", "Acme", true},
	} {
		err := Adoption{Whose: c.whose, WhoseID: c.whoseID, Said: c.said}.Permit(acme)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		var stranger *StrangerError
		if err != nil && (!errors.As(err, &stranger) || stranger.Hint() == "") {
			t.Errorf("%s: %v has no hint", name, err)
		}
	}
}
