package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"
)

// LocationDir is the kind of a location that is a directory.
const LocationDir = "dir"

// Bounds of a location's texts.
const (
	maxLocationName = 128
	maxLocationPath = 4096
)

// Location is one of the provider's own repositories: where the objects of many
// cloud repositories lie.
type Location struct {
	ID       string
	Name     string
	Kind     string // LocationDir
	Path     string // of a directory: absolute and clean, links resolved
	ReadOnly bool   // restores go on, nothing new is written
	Created  time.Time
	Updated  time.Time
	Version  int64
}

// The errors of a LocationStore that its caller decides on.
var (
	ErrLocationNotFound = errors.New("repository not found")
	ErrLocationExists   = errors.New("a repository of this name already exists")
	ErrLocationChanged  = errors.New("repository changed by somebody else in the meantime")
)

// LocationError is a location that breaks a rule.
type LocationError struct {
	Field  string
	Reason string
}

// Error names the field and the rule.
func (e *LocationError) Error() string { return e.Field + ": " + e.Reason }

// InUseError refuses the deletion of a location that cloud repositories use.
type InUseError struct {
	Name         string
	Repositories int
}

// Error says how many.
func (e *InUseError) Error() string {
	return fmt.Sprintf("repository %q holds %d cloud repositories", e.Name, e.Repositories)
}

// Hint says what helps.
func (e *InUseError) Hint() string { return "delete or move its cloud repositories first" }

// LocationStore keeps the provider's repositories. Create, Update and Delete
// need audit.With in the context. Create refuses a directory inside another
// location's, and one around another's, in the same transaction in which it
// writes.
type LocationStore interface {
	Create(ctx context.Context, l Location) (Location, error)
	Get(ctx context.Context, id string) (Location, error)
	// List is ordered by name; a provider has tens of them, never thousands.
	List(ctx context.Context) ([]Location, error)
	// Update changes name and read-only mode; a path stays what it is.
	Update(ctx context.Context, l Location) (Location, error)
	// Delete forgets the location and leaves its objects where they are.
	Delete(ctx context.Context, id string) error
}

// Clean brings a directory's path into the one form in which paths are
// compared: absolute, without links as far as it exists.
func (l Location) Clean() (Location, error) {
	if l.Kind != LocationDir {
		return l, l.Check()
	}
	if !filepath.IsAbs(l.Path) {
		return l, &LocationError{Field: "path", Reason: fmt.Sprintf("%q is not an absolute path", l.Path)}
	}
	path, err := resolve(filepath.Clean(l.Path))
	if err != nil {
		return l, fmt.Errorf("resolve repository path: %w", err)
	}
	l.Path = path
	return l, l.Check()
}

// resolve follows the links of the longest part of path that exists.
func resolve(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		return real, nil
	}
	parent := filepath.Dir(path)
	if !errors.Is(err, fs.ErrNotExist) || parent == path {
		return "", err
	}
	if parent, err = resolve(parent); err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(path)), nil
}

// Check says whether a location keeps the rules that need no other location.
func (l Location) Check() error {
	switch {
	case l.Name == "" || utf8.RuneCountInString(l.Name) > maxLocationName || !printable(l.Name):
		return &LocationError{Field: "name", Reason: fmt.Sprintf("must be 1 to %d printable characters", maxLocationName)}
	case l.Kind != LocationDir:
		return &LocationError{Field: "kind", Reason: fmt.Sprintf("%q is unknown; the kind is %q", l.Kind, LocationDir)}
	case !filepath.IsAbs(l.Path) || filepath.Clean(l.Path) != l.Path:
		return &LocationError{Field: "path", Reason: fmt.Sprintf("%q is not a clean absolute path", l.Path)}
	case l.Path == "/":
		return &LocationError{Field: "path", Reason: "the root directory cannot be a repository"}
	case len(l.Path) > maxLocationPath || !printable(l.Path):
		return &LocationError{Field: "path", Reason: fmt.Sprintf("must be at most %d printable bytes", maxLocationPath)}
	}
	return nil
}

// Apart says whether l and another location may exist side by side: one
// repository's directory inside another's would have its objects taken for the
// other's by a rescan, and collected.
func (l Location) Apart(other Location) error {
	if l.Kind != LocationDir || other.Kind != LocationDir || l.ID != "" && l.ID == other.ID {
		return nil
	}
	switch {
	case l.Path == other.Path:
		return &LocationError{Field: "path", Reason: fmt.Sprintf("%s is the directory of repository %q", l.Path, other.Name)}
	case within(other.Path, l.Path):
		return &LocationError{Field: "path", Reason: fmt.Sprintf("%s lies inside %s of repository %q", l.Path, other.Path, other.Name)}
	case within(l.Path, other.Path):
		return &LocationError{Field: "path", Reason: fmt.Sprintf("%s would contain %s of repository %q", l.Path, other.Path, other.Name)}
	}
	return nil
}

func within(outer, inner string) bool {
	return strings.HasPrefix(inner, strings.TrimSuffix(outer, "/")+"/")
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}
