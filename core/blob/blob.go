package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
)

// Store keeps immutable objects. It is safe for several goroutines, and several
// processes may use one at the same time.
type Store interface {
	// Put makes a new object of the size bytes of content. It is atomic: until
	// it returns nil the object may or may not exist, but whoever sees it sees
	// all of it, and after nil it survives a loss of power. A name that is taken
	// is ErrExists, and its object is untouched; it survives a loss of power, too.
	Put(ctx context.Context, name string, content io.ReaderAt, size int64) error

	// ReadAt fills p with the object's bytes from offset on. Bytes beyond the
	// end are io.ErrUnexpectedEOF; p may have been changed by then.
	ReadAt(ctx context.Context, name string, p []byte, offset int64) error

	// List calls for every object whose name begins with the prefix, in the
	// order of their names' bytes. Objects that come or go during the walk may
	// be listed or not.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]

	// Delete removes an object; one that does not exist is ErrNotFound, one that
	// is retained is ErrRetained.
	Delete(ctx context.Context, name string) error

	// Retain keeps an object from being deleted before a moment. It only ever
	// extends: an earlier date than the present one changes nothing.
	Retain(ctx context.Context, name string, until time.Time) error
}

// Adopter is a Store that can take over a finished file without copying it.
type Adopter interface {
	// Adopt does what Put does with the content of a file, which must not be
	// written to afterwards. The file's own name stays; the caller removes it.
	// errors.ErrUnsupported means that this file has to be Put, and ErrUnsynced
	// that it must be written anew before it is given to anybody again.
	Adopt(ctx context.Context, name, file string) error
}

// Foldered is a Store that can name the folders below a prefix without walking
// what lies in them: a directory reads its entries, S3 asks for common prefixes.
type Foldered interface {
	// Folders calls for every folder directly below the prefix, which is empty or
	// ends in '/', in the order in which List comes by their objects. It gives
	// the names without the prefix and the '/'. A folder may be empty.
	Folders(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// Folders names the folders directly below a prefix. A store that is not
// Foldered is walked whole.
func Folders(ctx context.Context, s Store, prefix string) iter.Seq2[string, error] {
	if f, ok := s.(Foldered); ok {
		return f.Folders(ctx, prefix)
	}
	return func(yield func(string, error) bool) {
		last := ""
		for object, err := range s.List(ctx, prefix) {
			if err != nil {
				yield("", err)
				return
			}
			folder, _, below := strings.Cut(strings.TrimPrefix(object.Name, prefix), "/")
			if below && folder != last {
				if last = folder; !yield(folder, nil) {
					return
				}
			}
		}
	}
}

// Object is an entry of a listing.
type Object struct {
	Name      string
	SizeBytes int64
	Created   time.Time
}

// The errors that callers decide on.
var (
	ErrNotFound = errors.New("object not found")
	ErrExists   = errors.New("object exists already")
	ErrRetained = errors.New("object is retained")
	ErrFull     = errors.New("no space left in the object store")
	ErrName     = errors.New("not a name of an object")
	// ErrUnsynced: what was written may not have reached the disk. The system
	// reports that once and then takes the pages for clean, so a second sync that
	// succeeds proves nothing: it has to be written again.
	ErrUnsynced = errors.New("what was written may not have reached the disk")
)

// Limits of names.
const (
	maxName    = 512
	maxElement = 128
)

// CheckName accepts one or more elements of lower-case letters, digits, '-',
// '_' and '.', joined by '/'; no element is empty, too long or begins with '.'.
// Case is left out because some file systems do not tell it apart.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("name of %d bytes: %w", len(name), ErrName)
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == "" || len(element) > maxElement || element[0] == '.' {
			return fmt.Errorf("name %q: %w", name, ErrName)
		}
		if i := strings.IndexFunc(element, func(r rune) bool { return !nameRune(r) }); i >= 0 {
			return fmt.Errorf("name %q: %w", name, ErrName)
		}
	}
	return nil
}

func nameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
}

// CheckPrefix accepts what can begin a name: nothing, or a name that may end in
// '/' or in the middle of an element.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return CheckName(strings.TrimSuffix(prefix, "/"))
}

// Stat finds one object.
func Stat(ctx context.Context, s Store, name string) (Object, error) {
	if err := CheckName(name); err != nil {
		return Object{}, err
	}
	for object, err := range s.List(ctx, name) {
		if err != nil {
			return Object{}, err
		}
		if object.Name == name {
			return object, nil
		}
		break // the exact name is the first of all that begin with it
	}
	return Object{}, fmt.Errorf("find %s: %w", name, ErrNotFound)
}

// Read returns a whole object of at most limit bytes.
func Read(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	object, err := Stat(ctx, s, name)
	if err != nil {
		return nil, err
	}
	if object.SizeBytes > limit {
		return nil, fmt.Errorf("read %s: %d bytes, at most %d are expected", name, object.SizeBytes, limit)
	}
	content := make([]byte, object.SizeBytes)
	if err := s.ReadAt(ctx, name, content, 0); err != nil {
		return nil, err
	}
	return content, nil
}
