package blobtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// ErrInjected is what a fault answers unless it says otherwise.
var ErrInjected = errors.New("injected fault")

// Verb names a call of a Store; Adopt counts as Put.
type Verb string

// The verbs.
const (
	VerbPut    Verb = "put"
	VerbRead   Verb = "read"
	VerbList   Verb = "list"
	VerbDelete Verb = "delete"
	VerbRetain Verb = "retain"
)

// Fault makes calls fail.
type Fault struct {
	Verb  Verb   // of the calls
	Match string // part of the object's name; empty: every name
	After int    // calls that still succeed
	Times int    // calls that fail then; 0: all
	Err   error  // ErrInjected if nil
	Late  bool   // the call is carried out and only its answer is lost
	Cut   bool   // half of the bytes arrive: a read is short, a put stores nothing
	Hook  func() // called before the call fails
}

// Faulty wraps a store and fails on request.
type Faulty struct {
	Store blob.Store

	mu     sync.Mutex // guards what follows
	faults []*Fault
	full   int64 // bytes that may still be put; -1: no limit
	calls  map[Verb]int
}

// NewFaulty wraps a store; until told, nothing fails.
func NewFaulty(s blob.Store) *Faulty { return &Faulty{Store: s, full: -1, calls: map[Verb]int{}} }

var (
	_ blob.Store   = (*Faulty)(nil)
	_ blob.Adopter = (*Faulty)(nil)
)

// Fail adds a fault.
func (f *Faulty) Fail(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &fault)
}

// Heal removes every fault and limit.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.full = nil, -1
}

// Fill leaves room for so many bytes; a Put that does not fit is blob.ErrFull.
func (f *Faulty) Fill(room int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = room
}

// Calls is how many calls of a verb were made.
func (f *Faulty) Calls(v Verb) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[v]
}

// next decides about one call.
func (f *Faulty) next(v Verb, name string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[v]++
	for i, fault := range f.faults {
		if fault.Verb != v || !strings.Contains(name, fault.Match) {
			continue
		}
		if fault.After > 0 {
			fault.After--
			continue
		}
		if fault.Times > 0 {
			if fault.Times--; fault.Times == 0 {
				f.faults = append(f.faults[:i:i], f.faults[i+1:]...)
			}
		}
		return fault
	}
	return nil
}

// do makes one call, unless a fault takes its place.
func (f *Faulty) do(v Verb, name string, cut, call func() error) error {
	fault := f.next(v, name)
	if fault == nil {
		return call()
	}
	if fault.Hook != nil {
		fault.Hook()
	}
	err := fault.Err
	if err == nil {
		err = ErrInjected
	}
	switch {
	case fault.Late:
		if failed := call(); failed != nil {
			return failed
		}
	case fault.Cut && cut != nil:
		if failed := cut(); failed != nil {
			err = failed
		}
	}
	return fmt.Errorf("%s %s: %w", v, name, err)
}

func (f *Faulty) room(name string, size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full < 0 {
		return nil
	}
	if size > f.full {
		return fmt.Errorf("put %s: %w", name, blob.ErrFull)
	}
	f.full -= size
	return nil
}

// Put makes a new object, or fails.
func (f *Faulty) Put(ctx context.Context, name string, content io.ReaderAt, size int64) error {
	cut := func() error { // a store that gets half of the bytes has to refuse them
		return f.Store.Put(ctx, name, io.NewSectionReader(content, 0, size/2), size)
	}
	return f.do(VerbPut, name, cut, func() error {
		if err := f.room(name, size); err != nil {
			return err
		}
		return f.Store.Put(ctx, name, content, size)
	})
}

// Adopt makes a new object of a file, or fails; errors.ErrUnsupported where the
// wrapped store cannot.
func (f *Faulty) Adopt(ctx context.Context, name, file string) error {
	adopter, ok := f.Store.(blob.Adopter)
	if !ok {
		return fmt.Errorf("adopt %s: %w", name, errors.ErrUnsupported)
	}
	f.mu.Lock()
	limited := f.full >= 0
	f.mu.Unlock()
	if limited { // the limit counts bytes that are put
		return fmt.Errorf("adopt %s: %w", name, errors.ErrUnsupported)
	}
	return f.do(VerbPut, name, nil, func() error { return adopter.Adopt(ctx, name, file) })
}

// ReadAt reads, or fails.
func (f *Faulty) ReadAt(ctx context.Context, name string, p []byte, offset int64) error {
	cut := func() error {
		if err := f.Store.ReadAt(ctx, name, p[:len(p)/2], offset); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}
	return f.do(VerbRead, name, cut, func() error { return f.Store.ReadAt(ctx, name, p, offset) })
}

// List lists, or fails at once.
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	return func(yield func(blob.Object, error) bool) {
		err := f.do(VerbList, prefix, nil, func() error {
			f.Store.List(ctx, prefix)(yield)
			return nil
		})
		if err != nil {
			yield(blob.Object{}, err)
		}
	}
}

// Delete deletes, or fails.
func (f *Faulty) Delete(ctx context.Context, name string) error {
	return f.do(VerbDelete, name, nil, func() error { return f.Store.Delete(ctx, name) })
}

// Retain retains, or fails.
func (f *Faulty) Retain(ctx context.Context, name string, until time.Time) error {
	return f.do(VerbRetain, name, nil, func() error { return f.Store.Retain(ctx, name, until) })
}
