package blob_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// FuzzCheckName: a name that is accepted stays inside whatever directory it is
// joined to, and is the same on every file system.
func FuzzCheckName(f *testing.F) {
	for _, name := range []string{"a/b", "a//b", "../a", "a/../b", ".a", "A", "a/", strings.Repeat("a/", 300), "a\x00"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if blob.CheckName(name) != nil {
			return
		}
		if !filepath.IsLocal(name) || filepath.ToSlash(filepath.Clean(name)) != name || strings.ToLower(name) != name {
			t.Errorf("%q is a name", name)
		}
		if err := blob.CheckPrefix(name); err != nil {
			t.Errorf("%q is a name and no prefix: %v", name, err)
		}
	})
}
