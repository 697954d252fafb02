package audit

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// log is a Store that holds one chain.
type log []Entry

func (l log) List(_ context.Context, q Query) (all []Entry, err error) {
	for _, e := range l {
		if e.Sequence > q.After && len(all) < q.Limit {
			all = append(all, e)
		}
	}
	return all, nil
}
func (l log) Heads(context.Context) ([]Head, error) { return nil, nil }
func (l log) Record(context.Context, tenant.ID, string, string, any) error {
	return nil
}

func chain(n int) log {
	var l log
	var head Hash
	for i := range n {
		e := Entry{Chain: "t", Sequence: int64(i + 1), Time: time.UnixMicro(int64(1000 + i)),
			Origin: Origin{Actor: "user:1", Name: "ann", Reason: "why"}, Action: "a.b", Target: "c:d", Detail: json.RawMessage(`{"n":1}`), Previous: head}
		e.Hash = e.Sum()
		head = e.Hash
		l = append(l, e)
	}
	return l
}

func TestVerifyFindsEveryKindOfForgery(t *testing.T) {
	const n = pageSize + 3
	whole := chain(n)
	head, err := Verify(t.Context(), whole, "t")
	if err != nil || head != (Head{Chain: "t", Sequence: n, Hash: whole[n-1].Hash}) {
		t.Fatalf("a sound chain: %+v, %v", head, err)
	}
	rehash := func(l log, i int) { l[i].Hash = l[i].Sum() }
	for name, forge := range map[string]func(log) log{
		"removed":              func(l log) log { return append(l[:4:4], l[5:]...) },
		"removed, renumbered":  func(l log) log { l = append(l[:4:4], l[5:]...); l[4].Sequence = 5; rehash(l, 4); return l },
		"changed":              func(l log) log { l[4].Reason = "other"; return l },
		"changed and rehashed": func(l log) log { l[3].Reason = "other"; rehash(l, 3); return l },
		"swapped texts":        func(l log) log { l[4].Actor, l[4].Name = "user:", "1ann"; return l },
		"other time":           func(l log) log { l[4].Time = l[4].Time.Add(time.Microsecond); return l },
		"of another chain":     func(l log) log { l[4].Chain = "u"; return l },
		"twice":                func(l log) log { l[5] = l[4]; l[5].Sequence = 5; l[4].Sequence = 6; return l },
		"first one gone":       func(l log) log { return l[1:] },
		"detail":               func(l log) log { l[4].Detail = nil; return l },
	} {
		var broken *BrokenError
		if _, err := Verify(t.Context(), forge(chain(n)), "t"); !errors.As(err, &broken) || broken.Sequence > 6 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if short, err := Verify(t.Context(), whole[:10], "t"); err != nil || short == head {
		t.Errorf("a chain cut at its end is whole in itself, but has another head: %+v, %v", short, err)
	}
}

// The sum is a format: heads that were exported years ago must still match.
func TestGoldenSum(t *testing.T) {
	const golden = "e4fdf3c9c320926fc72a1783b0f65a5cb7ad5b0ab8e26230a65e27738194e237"
	if got := chain(2)[1].Hash.String(); got != golden {
		t.Errorf("sum %s, want %s", got, golden)
	}
	if h, err := ParseHash(golden); err != nil || h.String() != golden {
		t.Errorf("parsed %s, %v", h, err)
	}
	for _, bad := range []string{"", "zz", strings.Repeat("g", 64)} {
		if _, err := ParseHash(bad); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func TestOrigin(t *testing.T) {
	if _, err := From(t.Context()); !errors.Is(err, ErrNoOrigin) {
		t.Errorf("without one: %v", err)
	}
	if _, err := From(With(t.Context(), Origin{Reason: "x"})); !errors.Is(err, ErrNoOrigin) {
		t.Errorf("without an actor: %v", err)
	}
	o, err := From(With(t.Context(), Origin{Actor: "user:1", Reason: strings.Repeat("ü", 2*MaxReason), Name: "a\x00\xffb"}))
	if err != nil || len([]rune(o.Reason)) != MaxReason || o.Name != "a\ufffd\ufffdb" {
		t.Errorf("bounded: %d characters, name %q, %v", len([]rune(o.Reason)), o.Name, err)
	}
	if o := System("expiry", "idle"); o.Actor != "system:expiry" {
		t.Errorf("system: %+v", o)
	}
}
