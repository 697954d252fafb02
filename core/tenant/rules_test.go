package tenant

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	good := []string{"Acme", "acme-1", "a", "Müller & Söhne GmbH", "日本", "con1", "console", "a.b", "x(1)", strings.Repeat("ü", MaxName)}
	for _, name := range good {
		if err := CheckName(name); err != nil {
			t.Errorf("%q is refused: %v", name, err)
		}
	}
	bad := []string{"", " a", "a ", "a.", ".", "con", "NUL", "Com1", "lpt9", "nul.txt", "aux .b", "a\nb", "a\x00", "a\u202eb", "\xff",
		strings.Repeat("a", MaxName+1)}
	for _, r := range `+][,\/:*?"<>|=;@` {
		bad = append(bad, "a"+string(r)+"b")
	}
	for _, name := range bad {
		var invalid *InvalidError
		if err := CheckName(name); !errors.As(err, &invalid) || invalid.Field != "name" {
			t.Errorf("%q is accepted: %v", name, err)
		}
	}
}

func TestRules(t *testing.T) {
	ok := Tenant{Type: Standalone, Name: "acme", MaxTasks: 1}
	for field, change := range map[string]func(*Tenant){
		"":            func(*Tenant) {},
		"name":        func(v *Tenant) { v.Name = "" },
		"type":        func(v *Tenant) { v.Type = CloudDirector },
		"description": func(v *Tenant) { v.Description = strings.Repeat("x", MaxDescription+1) },
		"tasks":       func(v *Tenant) { v.MaxTasks = MaxTasks + 1 },
		"lease end":   func(v *Tenant) { v.LeaseEnd = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		v := ok
		change(&v)
		var invalid *InvalidError
		err := v.Check()
		if got := errors.As(err, &invalid); got != (field != "") || got && invalid.Field != field {
			t.Errorf("%q: %v", field, err)
		}
	}
	v := ok
	v.Type = CloudDirector
	if err := v.Check(); !strings.Contains(err.Error(), "vcd plugin") {
		t.Errorf("the refusal of a Cloud Director tenant gives no reason: %v", err)
	}
}
