package state

import (
	"slices"
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/holdfast-dr/holdfast/core/claim"
)

// What one writer after the other would see of a cloud repository's quota, and
// of a claim. The models know nothing of time: no claim of these tests expires.

// linearCall is what a writer asks for.
type linearCall struct {
	Verb    string // reserve, commit, release, look; acquire, renew, drop, expel, write
	Session string
	Bytes   int64 // write: what is written
	Holder  claim.Holder
	Epoch   int64
}

// linearAnswer is what it was told.
type linearAnswer struct {
	Refused       bool   // no room; held by another, or fenced
	Used, Pending int64  // told by look, and by a refusal
	Held          int64  // of the session, after a reserve
	By            string // who holds the claim
	Epoch         int64
	Freed         int64
}

// whole is the verb of a look at everything, while nobody writes. Its answer is
// a state of the model.
const whole = "whole"

// unknown is the answer of a call that was cut: it took effect, or it did not.
type unknown struct {
	// left, if given, is what its session holds at the end of the window. No other
	// call of that session came later, so it is what the call left, and the search
	// need not follow both ways.
	left *int64
}

// linearModel makes a model of a step for calls whose answer is known. A step
// that is told nil tells what the call does if it takes effect; left is what the
// session of a call holds.
func linearModel(start any, left func(state any, in linearCall) int64, step func(state any, in linearCall, out *linearAnswer) (after any, ok bool)) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{start} },
		Step: func(state, input, output any) []any {
			in := input.(linearCall)
			switch out := output.(type) {
			case linearAnswer:
				if after, ok := step(state, in, &out); ok {
					return []any{after}
				}
				return nil
			case unknown:
				after, _ := step(state, in, nil)
				return slices.DeleteFunc([]any{state, after}, func(state any) bool { return out.left != nil && *out.left != left(state, in) })
			default:
				if state == output {
					return []any{state}
				}
				return nil
			}
		},
	}
	return m.ToModel()
}

// maxLinearSessions bounds the sessions of one cloud repository in one window.
const maxLinearSessions = 64

// quotaBooks is the state of a cloud repository's quota.
type quotaBooks struct {
	used  int64
	other int64 // of sessions that are not in this window
	held  [maxLinearSessions]int64
}

func (b *quotaBooks) pending() int64 {
	sum := b.other
	for _, n := range b.held {
		sum += n
	}
	return sum
}

func quotaModel(start quotaBooks, limit int64, sessions map[string]int) porcupine.Model {
	left := func(state any, in linearCall) int64 { return state.(quotaBooks).held[sessions[in.Session]] }
	return linearModel(start, left, func(state any, in linearCall, out *linearAnswer) (any, bool) {
		before := state.(quotaBooks)
		after, pending := before, before.pending()
		if in.Verb == "look" {
			return before, out == nil || out.Used == before.used && out.Pending == pending
		}
		own, fits := &after.held[sessions[in.Session]], true
		switch in.Verb {
		case "release":
			*own = 0
			return after, true
		case "reserve":
			fits = before.used+pending+in.Bytes <= limit
			*own += in.Bytes
		case "commit":
			pending -= *own
			fits = before.used+pending+in.Bytes <= limit || in.Bytes <= *own
			*own, after.used = 0, before.used+in.Bytes
		}
		switch {
		case out == nil && fits:
			return after, true
		case out == nil:
			return before, true
		case out.Refused:
			return before, !fits && out.Used == before.used && out.Pending == pending
		}
		return after, fits && (in.Verb != "reserve" || out.Held == *own)
	})
}

// claimBooks is the state of a claim, and of what is written under it.
type claimBooks struct {
	epoch   int64
	holder  claim.Holder // zero: it is free
	written int64
}

func claimModel(start claimBooks) porcupine.Model {
	return linearModel(start, nil, func(state any, in linearCall, out *linearAnswer) (any, bool) {
		before := state.(claimBooks)
		after := before
		free := before.holder == claim.Holder{}
		refused, told := false, true // what a refusal or an answer would have to say beside it
		switch in.Verb {
		case "look":
			by := ""
			if !free {
				by = before.holder.String()
			}
			return before, out == nil || out.Epoch == before.epoch && out.By == by
		case "acquire":
			if refused = !free; !refused {
				after.epoch, after.holder = before.epoch+1, in.Holder
			}
			told = out == nil || refused && out.By == before.holder.String() || !refused && out.Epoch == after.epoch
		case "renew":
			refused = free || before.epoch != in.Epoch || before.holder != in.Holder
		case "write": // a claim that was given up may write on until there is a newer one
			if refused = before.epoch != in.Epoch; !refused {
				after.written = in.Bytes
			}
		case "drop":
			if before.epoch == in.Epoch {
				after.holder = claim.Holder{}
			}
		case "expel":
			freed := int64(0)
			if !free && before.holder.Node == in.Holder.Node && before.holder != in.Holder {
				after.holder, freed = claim.Holder{}, 1
			}
			told = out == nil || out.Freed == freed
		}
		return after, told && (out == nil || out.Refused == refused)
	})
}

// The checker takes what may have happened for possible, and nothing else.
func TestLinearModels(t *testing.T) {
	ok := func(what string, want bool, m porcupine.Model, ops ...porcupine.Operation) {
		t.Helper()
		if got := porcupine.CheckOperations(m, ops); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	op := func(call, end int64, in linearCall, out any) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
	}
	quota := quotaModel(quotaBooks{used: 40}, 100, map[string]int{"a": 0, "b": 1})
	a, b := linearCall{Verb: "reserve", Session: "a", Bytes: 40}, linearCall{Verb: "reserve", Session: "b", Bytes: 40}
	full := linearAnswer{Refused: true, Used: 40, Pending: 40}
	ok("one of two has no room", true, quota, op(1, 4, a, full), op(2, 3, b, linearAnswer{Held: 40}))
	ok("both have room in a quota for one", false, quota, op(1, 4, a, linearAnswer{Held: 40}), op(2, 3, b, linearAnswer{Held: 40}))
	ok("refused before anybody took it", false, quota, op(1, 2, a, full), op(3, 4, b, linearAnswer{Held: 40}))
	ok("refused beside one that was cut", true, quota, op(1, 9, a, unknown{}), op(2, 3, b, full))
	held := int64(40)
	ok("cut, and seen to have had an effect", false, quota, op(1, 9, a, unknown{left: &held}), op(2, 3, b, linearAnswer{Held: 40}))
	ok("cut, and of no effect", true, quota, op(1, 9, a, unknown{}), op(2, 3, b, linearAnswer{Held: 40}))
	ok("cut, and of half an effect", false, quota, op(1, 2, a, unknown{}), op(3, 4, linearCall{Verb: whole}, quotaBooks{used: 40, held: [maxLinearSessions]int64{20}}))

	one, two := claim.Holder{Node: "one", Instance: "0"}, claim.Holder{Node: "two", Instance: "0"}
	claims := claimModel(claimBooks{epoch: 4})
	take := func(h claim.Holder) linearCall { return linearCall{Verb: "acquire", Holder: h} }
	write := linearCall{Verb: "write", Holder: one, Epoch: 5, Bytes: 7}
	drop := linearCall{Verb: "drop", Holder: one, Epoch: 5}
	ok("two holders", false, claims, op(1, 2, take(one), linearAnswer{Epoch: 5}), op(3, 4, take(two), linearAnswer{Epoch: 6}))
	ok("the same epoch twice", false, claims, op(1, 4, take(one), linearAnswer{Epoch: 5}), op(2, 3, take(two), linearAnswer{Epoch: 5}))
	ok("one after the other", true, claims, op(1, 2, take(one), linearAnswer{Epoch: 5}), op(3, 8, drop, unknown{}), op(4, 5, take(two), linearAnswer{Epoch: 6}))
	ok("a fenced write", true, claims, op(1, 2, take(one), linearAnswer{Epoch: 5}), op(3, 4, drop, linearAnswer{}),
		op(5, 6, take(two), linearAnswer{Epoch: 6}), op(7, 8, write, linearAnswer{Refused: true}))
	ok("a write that should have been fenced", false, claims, op(1, 2, take(one), linearAnswer{Epoch: 5}), op(3, 4, drop, linearAnswer{}),
		op(5, 6, take(two), linearAnswer{Epoch: 6}), op(7, 8, write, linearAnswer{}))
	ok("one that was cut, and came late", false, claims, op(1, 2, take(one), linearAnswer{Epoch: 5}), op(3, 4, drop, linearAnswer{}),
		op(5, 6, take(two), linearAnswer{Epoch: 6}), op(7, 8, write, unknown{}), op(9, 10, linearCall{Verb: whole}, claimBooks{epoch: 6, holder: two, written: 7}))
}
