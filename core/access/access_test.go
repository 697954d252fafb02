package access

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// The whole rights table, written out: who may do what, where.
func TestRights(t *testing.T) {
	type want struct{ provider, own, foreign Level }
	for role, w := range map[Role]want{
		ProviderAdmin:    {Manage, Manage, Manage},
		ProviderOperator: {Operate, Operate, Operate},
		ProviderAuditor:  {View, View, View},
		TenantAdmin:      {None, Manage, None},
		TenantOperator:   {None, Operate, None},
		TenantViewer:     {None, View, None},
	} {
		c := Caller{Kind: ByUser, Role: role}
		if !role.Provider() {
			c.TenantID = "own"
		}
		for _, level := range []Level{View, Operate, Manage} {
			for _, scope := range []Level{None, View, Operate, Manage} {
				c.Scope = scope
				allowed := func(role Level) bool {
					if scope != None {
						role = min(role, scope)
					}
					return role >= level
				}
				if got := c.May(Permission{ProviderSide, level}, ""); got != allowed(w.provider) {
					t.Errorf("%s with scope %d, level %d, provider: %v", role, scope, level, got)
				}
				if got := c.May(Permission{TenantSide, level}, "own"); got != allowed(w.own) {
					t.Errorf("%s with scope %d, level %d, own tenant: %v", role, scope, level, got)
				}
				if got := c.May(Permission{TenantSide, level}, "foreign"); got != allowed(w.foreign) {
					t.Errorf("%s with scope %d, level %d, foreign tenant: %v", role, scope, level, got)
				}
			}
		}
	}
}

func TestWhoHasNoRights(t *testing.T) {
	for name, c := range map[string]Caller{
		"nobody":                          {},
		"an agent":                        {Kind: ByAgent, AgentID: "a", TenantID: "own"},
		"no role":                         {Kind: ByUser, TenantID: "own"},
		"an unknown role":                 {Kind: ByUser, Role: "king", TenantID: "own"},
		"a provider's role in a tenant":   {Kind: ByUser, Role: ProviderAdmin, TenantID: "own"},
		"a tenant's role without one":     {Kind: ByUser, Role: TenantAdmin},
		"a role without saying it's user": {Role: ProviderAdmin},
	} {
		for _, side := range []Side{ProviderSide, TenantSide} {
			for _, in := range []tenant.ID{"", "own", "foreign"} {
				if c.May(Permission{side, View}, in) {
					t.Errorf("%s may view the %s side of %q", name, side, in)
				}
			}
		}
	}
	if (Caller{Kind: ByUser, Role: ProviderAdmin}).May(Permission{ProviderSide, None}, "") {
		t.Error("an operation that needs nothing is not an operation")
	}
}

func TestCallerTravelsInTheContext(t *testing.T) {
	if c := From(t.Context()); c != (Caller{}) || c.Actor() != "anonymous" {
		t.Errorf("without one: %+v", c)
	}
	c := Caller{Kind: ByUser, UserID: "7"}
	if got := From(With(t.Context(), c)); got != c || got.Actor() != "user:7" {
		t.Errorf("got %+v", got)
	}
}

func TestTokens(t *testing.T) {
	text, hash := NewToken()
	other, _ := NewToken()
	if !strings.HasPrefix(text, "hf_") || text == other {
		t.Errorf("tokens %q and %q", text, other)
	}
	if got, err := HashToken(text); err != nil || got != hash {
		t.Errorf("hash %v, %v", got, err)
	}
	enrolment, hash := NewEnrolmentToken()
	if got, err := HashEnrolmentToken(enrolment); err != nil || got != hash {
		t.Errorf("hash %v, %v", got, err)
	}
	for _, bad := range []string{"", "hf_", text + "x", text[:len(text)-1], enrolment, strings.Replace(text, "hf_", "HF_", 1), text[:10] + "!" + text[11:]} {
		if _, err := HashToken(bad); !errors.Is(err, ErrCredentials) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := HashEnrolmentToken(text); !errors.Is(err, ErrEnrolment) {
		t.Errorf("a bearer token as an enrolment: %v", err)
	}
	if back, err := ParseHash(hash.String()); err != nil || back != hash {
		t.Errorf("parsed %v, %v", back, err)
	}
	if _, err := ParseHash("zz"); err == nil {
		t.Error("nonsense was parsed")
	}
}

func cheap(parallel int) *Passwords {
	p := &Passwords{turns: make(chan struct{}, parallel), cost: cost{memoryKiB: 64, passes: 1, threads: 1}}
	p.dummy = p.encode("", make([]byte, saltSize))
	return p
}

func TestPasswords(t *testing.T) {
	p := cheap(2)
	hash, err := p.Hash(t.Context(), "correct horse battery")
	if err != nil || !strings.HasPrefix(hash, "$argon2id$v=19$m=64,t=1,p=1$") {
		t.Fatalf("hash %q, %v", hash, err)
	}
	if err := p.Verify(t.Context(), hash, "correct horse battery"); err != nil {
		t.Error(err)
	}
	// A hash carries its own cost: one that was made before the cost was raised still opens.
	if err := NewPasswords(1).Verify(t.Context(), hash, "correct horse battery"); err != nil {
		t.Error(err)
	}
	for _, wrong := range []string{"", "correct horse batterz", strings.Repeat("x", MaxPassword+1)} {
		if err := p.Verify(t.Context(), hash, wrong); !errors.Is(err, ErrCredentials) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	if err := p.Verify(t.Context(), "", ""); !errors.Is(err, ErrCredentials) {
		t.Errorf("an unknown user with the empty password: %v", err)
	}
	for _, bad := range []string{"x", "$argon2i$v=19$m=64,t=1,p=1$YWFhYWFhYWE$YWFhYWFhYWFhYWFhYWFhYQ", "$argon2id$v=19$m=99999999,t=1,p=1$YWFhYWFhYWE$YWFhYWFhYWFhYWFhYWFhYQ",
		"$argon2id$v=19$m=64,t=1,p=1$$", "$argon2id$v=19$m=64,t=0,p=1$YWFhYWFhYWE$YWFhYWFhYWFhYWFhYWFhYQ"} {
		if err := p.Verify(t.Context(), bad, "x"); err == nil || errors.Is(err, ErrCredentials) {
			t.Errorf("doctored hash %q: %v", bad, err)
		}
	}
	if _, err := p.Hash(t.Context(), "short"); err == nil {
		t.Error("a short password was accepted")
	}
	if a, b := GeneratePassword(), GeneratePassword(); a == b || CheckPassword(a) != nil {
		t.Errorf("generated %q and %q", a, b)
	}
}

func TestLoginsWaitTheirTurnForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := cheap(1)
		p.turns <- struct{}{} // somebody is at it
		if _, err := p.Hash(t.Context(), "correct horse battery"); !errors.Is(err, ErrBusy) {
			t.Errorf("while busy: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Verify(ctx, "", "x"); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		go p.leave()
		if _, err := p.Hash(t.Context(), "correct horse battery"); err != nil {
			t.Errorf("after the other left: %v", err)
		}
	})
}

func TestUserRules(t *testing.T) {
	for _, role := range Roles() {
		u := User{Name: "ann", Role: role}
		if !role.Provider() {
			u.TenantID = "t"
		}
		if err := u.Check(); err != nil {
			t.Errorf("%s: %v", role, err)
		}
		if role.Provider() {
			u.TenantID = "t"
		} else {
			u.TenantID = tenant.Provider
		}
		if u.Check() == nil {
			t.Errorf("%s in the wrong scope is accepted", role)
		}
	}
	for _, u := range []User{{Role: ProviderAdmin}, {Name: "a\nb", Role: ProviderAdmin}, {Name: "ann", Role: "king"}} {
		if u.Check() == nil {
			t.Errorf("%+v is accepted", u)
		}
	}
}
