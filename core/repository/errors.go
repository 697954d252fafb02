package repository

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
)

// The errors that callers decide on. Besides these: *point.MissingError and
// *quota.FullError from Commit, claim.ErrFenced from everything that writes,
// blob.ErrFull when a disk is full, chunk.ErrDamaged.
var (
	// ErrNotFound: no such point, session, wrap or record.
	ErrNotFound = errors.New("not found in the repository")
	// ErrRefused: what was sent breaks a rule; sending it again does not help.
	ErrRefused = errors.New("refused")
	// ErrBusy: another run of the same kind is going on, or too many sessions.
	ErrBusy = errors.New("busy")
	// ErrReadOnly: the repository was opened without a claim.
	ErrReadOnly = errors.New("repository was opened for reading")
	// ErrVoid: this point was refused before, and its id is used up.
	ErrVoid = errors.New("an earlier commit of this point was refused")
)

// AbsentError names a record that the repository does not hold.
type AbsentError struct {
	Kind chunk.Kind
	ID   chunk.ID
}

func (e *AbsentError) Error() string {
	return fmt.Sprintf("%s %s is not in the repository", kindName(e.Kind), e.ID)
}

// Is makes it an ErrNotFound, and what readers of records call it.
func (e *AbsentError) Is(target error) bool {
	return target == ErrNotFound || target == chunk.ErrAbsent
}

// DamagedError names a record of which no sound copy is left.
type DamagedError struct {
	Kind chunk.Kind
	ID   chunk.ID
	Pack PackID // where a damaged copy is
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s %s is damaged in pack %s and there is no other copy", kindName(e.Kind), e.ID, e.Pack)
}

// Is makes it a chunk.ErrDamaged.
func (e *DamagedError) Is(target error) bool { return target == chunk.ErrDamaged }

// Hint says how the data comes back.
func (e *DamagedError) Hint() string {
	return "the next backup sends it again if the machine still has the block; an older or newer point may be whole"
}

func kindName(k chunk.Kind) string {
	if k == chunk.KindPage {
		return "map page"
	}
	return "chunk"
}

// OldDatabaseError refuses writing, because the store has been written under a
// newer claim than this database knows: it was restored from a backup.
type OldDatabaseError struct {
	Repository string
	Epoch      uint64   // of the claim
	Newest     uint64   // in the store
	Unknown    point.ID // in the store and not in the database, if that gave it away
}

func (e *OldDatabaseError) Error() string {
	if e.Unknown != "" {
		return fmt.Sprintf("repository %s has point %s, which the database does not know: it is older than the repository", e.Repository, e.Unknown)
	}
	return fmt.Sprintf("repository %s was written under epoch %d, the database is at %d: it is older than the repository", e.Repository, e.Newest, e.Epoch)
}

// Is makes it a claim.ErrFenced.
func (e *OldDatabaseError) Is(target error) bool { return target == claim.ErrFenced }

// Hint says what helps.
func (e *OldDatabaseError) Hint() string {
	return "restores work; run `holdfast repository import` before anything is written or collected"
}

// IncompleteError stops a collection, because what points need cannot be told
// while map pages are missing or damaged.
type IncompleteError struct {
	Points []point.ID // at most 100 of those affected
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("collection waits: map pages of %d points cannot be read (first: %s)", len(e.Points), e.Points[0])
}

// Hint says what helps.
func (e *IncompleteError) Hint() string {
	return "run verify; back the machines up again so that the pages come back, or forget the points that it names"
}

// EmptyStoreError refuses an import from a store in which not one point is to
// be found although the catalogue knows some: most likely the store is not
// mounted, and a catalogue without points would let the next collection delete
// everything once it is.
type EmptyStoreError struct{ Repository string }

func (e *EmptyStoreError) Error() string {
	return fmt.Sprintf("repository %s: the store has no manifest of any point that the catalogue knows", e.Repository)
}

// Hint says what to look at.
func (e *EmptyStoreError) Hint() string {
	return "see that the repository's disk is mounted at its path, then import again; if everything is really lost: holdfast repository import --accept-loss"
}

// Is makes it an ErrRefused.
func (e *EmptyStoreError) Is(target error) bool { return target == ErrRefused }
