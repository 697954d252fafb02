package movertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/point"
)

var (
	_ mover.Writer     = (*Store)(nil)
	_ mover.Reader     = (*Store)(nil)
	_ point.PageSource = (*Store)(nil)
)

// Name is what a record is found by.
type Name struct {
	Kind chunk.Kind
	ID   chunk.ID
}

// Store is a repository of records. Hooks are set before it is used.
type Store struct {
	OnHave func(ctx context.Context, ids []chunk.ID) error
	OnPut  func(ctx context.Context, batch []byte) error
	OnRead func(ctx context.Context, kind chunk.Kind, ids []chunk.ID) error
	// Forgetful keeps nothing of chunks but their ids, for large copies.
	Forgetful bool

	mutex   sync.Mutex // guards the fields below
	records map[Name][]byte
	counts  Counts
	served  time.Duration
}

// Counts is what was asked of a Store.
type Counts struct {
	Haves, Asked    int // requests, ids
	Puts, Chunks    int // requests, records of data
	Pages           int // records
	PutBytes        int64
	Reads, ReadIDs  int // requests, ids of either kind
	PageReads       int // requests for pages
	MaxPutsAtOnce   int
	putsAtOnce      int
	RepeatedRecords int
}

// NewStore returns an empty Store.
func NewStore() *Store { return &Store{records: make(map[Name][]byte)} }

// Counts is what was asked so far.
func (s *Store) Counts() Counts {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.counts
}

// Serve adds to what ServerTime reports.
func (s *Store) Serve(d time.Duration) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.served += d
}

// ServerTime is the sum of all calls of Serve.
func (s *Store) ServerTime() time.Duration {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.served
}

// Have implements mover.Writer.
func (s *Store) Have(ctx context.Context, kind chunk.Kind, ids []chunk.ID) ([]bool, error) {
	if s.OnHave != nil {
		if err := s.OnHave(ctx, ids); err != nil {
			return nil, err
		}
	}
	if len(ids) > mover.MaxIDs {
		return nil, fmt.Errorf("asked about %d ids", len(ids))
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.counts.Haves++
	s.counts.Asked += len(ids)
	have := make([]bool, len(ids))
	for i, id := range ids {
		_, have[i] = s.records[Name{kind, id}]
	}
	return have, nil
}

// Put implements mover.Writer. The first copy of a record wins.
func (s *Store) Put(ctx context.Context, batch []byte) error {
	s.enter(1)
	defer s.enter(-1)
	if s.OnPut != nil {
		if err := s.OnPut(ctx, batch); err != nil {
			return err
		}
	}
	if len(batch) == 0 || len(batch) > mover.MaxBatch {
		return fmt.Errorf("put of %d bytes", len(batch))
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.counts.Puts++
	s.counts.PutBytes += int64(len(batch))
	for len(batch) > 0 {
		r, rest, err := chunk.ParseRecord(batch)
		if err != nil {
			return err
		}
		if r.Kind == chunk.KindData {
			s.counts.Chunks++
		} else {
			s.counts.Pages++
		}
		name := Name{r.Kind, r.ID}
		switch _, twice := s.records[name]; {
		case twice:
			s.counts.RepeatedRecords++
		case s.Forgetful && r.Kind == chunk.KindData:
			s.records[name] = nil
		default:
			s.records[name] = bytes.Clone(batch[:r.Size()])
		}
		batch = rest
	}
	return nil
}

func (s *Store) enter(n int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.counts.putsAtOnce += n
	s.counts.MaxPutsAtOnce = max(s.counts.MaxPutsAtOnce, s.counts.putsAtOnce)
}

// Read implements mover.Reader.
func (s *Store) Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	if s.OnRead != nil {
		if err := s.OnRead(ctx, kind, ids); err != nil {
			return err
		}
	}
	if len(ids) == 0 || len(ids) > mover.MaxIDs {
		return fmt.Errorf("read of %d ids", len(ids))
	}
	s.mutex.Lock()
	s.counts.Reads++
	s.counts.ReadIDs += len(ids)
	if kind == chunk.KindPage {
		s.counts.PageReads++
	}
	s.mutex.Unlock()
	for _, id := range ids {
		s.mutex.Lock()
		record, ok := s.records[Name{kind, id}]
		s.mutex.Unlock()
		if !ok {
			return fmt.Errorf("read %s: %w", id, chunk.ErrAbsent)
		}
		r, _, err := chunk.ParseRecord(record)
		if err != nil {
			return fmt.Errorf("read %s: %w", id, err)
		}
		if err := emit(r); err != nil {
			return err
		}
	}
	return nil
}

// Pages implements point.PageSource without copies.
func (s *Store) Pages(ctx context.Context, ids []chunk.ID) ([][]byte, error) {
	var pages [][]byte
	err := s.Read(ctx, chunk.KindPage, ids, func(r chunk.Record) error {
		pages = append(pages, r.Body)
		return nil
	})
	return pages, err
}

// Names lists the records of a kind, in no order.
func (s *Store) Names(kind chunk.Kind) []chunk.ID {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var ids []chunk.ID
	for name := range s.records {
		if name.Kind == kind {
			ids = append(ids, name.ID)
		}
	}
	return ids
}

// Remove forgets a record.
func (s *Store) Remove(kind chunk.Kind, id chunk.ID) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.records, Name{kind, id})
}

// Replace puts a record in another's place, whatever it holds.
func (s *Store) Replace(kind chunk.Kind, id chunk.ID, record []byte) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.records[Name{kind, id}] = record
}

// Flip changes one byte in the body of a record.
func (s *Store) Flip(kind chunk.Kind, id chunk.ID) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	record := bytes.Clone(s.records[Name{kind, id}])
	record[chunk.HeaderSize+20] ^= 1
	s.records[Name{kind, id}] = record
}

// ErrTemporary is worth a repeat.
var ErrTemporary error = temporary{errors.New("the server restarts")}

type temporary struct{ error }

func (temporary) Temporary() bool { return true }
