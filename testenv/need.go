package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// installHint ends every message about something missing.
const installHint = "testenv/setup.sh test installs it"

// toolDirs are searched after PATH. An ordinary user's PATH on Debian has no sbin, where mke2fs and libvirtd live, and
// PostgreSQL's server programs are in no PATH at all; the newest version comes first.
func toolDirs() []string {
	dirs := []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}
	versions, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(versions, func(a, b string) int {
		if len(a) != len(b) { // 9 is older than 15
			return len(b) - len(a)
		}
		return strings.Compare(b, a)
	})
	return append(dirs, versions...)
}

// FindTool returns the full path of a program, as Need looks for it.
func FindTool(name string) (path string, ok bool) {
	if path, err := exec.LookPath(name); err == nil {
		return path, true
	}
	if strings.ContainsRune(name, '/') {
		return "", false
	}
	for _, dir := range toolDirs() {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, true
		}
	}
	return "", false
}

// Need lets the test go on only if every one of these programs is installed.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	var missing []string
	for _, tool := range tools {
		if _, ok := FindTool(tool); !ok {
			missing = append(missing, tool)
		}
	}
	if len(missing) > 0 {
		Lack(t, "needs %s: %s", strings.Join(missing, ", "), installHint)
	}
}

// Tool returns the full path of a program that the test cannot do without.
func Tool(t testing.TB, name string) string {
	t.Helper()
	Need(t, name)
	path, _ := FindTool(name)
	return path
}

// Python returns a Python 3 interpreter that can import every one of these modules. Debian's own is tried first, because
// its modules are Debian packages and another python3 earlier in PATH does not see them.
func Python(t testing.TB, modules ...string) string {
	t.Helper()
	script := "pass"
	if len(modules) > 0 {
		script = "import " + strings.Join(modules, ", ")
	}
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(python, "-c", script).Run() == nil {
			return python
		}
	}
	Lack(t, "needs python3 with %s: %s", strings.Join(append(modules, "its standard library"), ", "), installHint)
	return ""
}

// NeedRoot lets the test go on only as root, for network and mount namespaces and for a system libvirtd.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Lack(t, "needs root: run it with sudo -E")
	}
}

// Lack ends the test because something that it needs from the machine is not there: skipped locally, failed in CI. Other
// helpers of this package call it for what Need cannot see, such as a guest image that could not be built.
func Lack(t testing.TB, format string, args ...any) {
	t.Helper()
	if InCI() {
		t.Fatalf("CI: "+format, args...)
	}
	t.Skipf(format, args...)
}

// InCI reports whether the machine promised to have everything installed.
func InCI() bool { return os.Getenv("CI") == "true" }

// CacheDir returns a directory that outlives a run, for what is slow to make and safe to lose: guest kernels, disk images,
// a hypervisor's capabilities. It is HOLDFAST_CACHE, or holdfast in the user's cache directory, or, where there is no
// home, one per user in the temporary directory. Many tests use it at once: write beside and rename.
func CacheDir() string {
	dir := os.Getenv("HOLDFAST_CACHE")
	if dir == "" {
		dir = defaultCacheDir()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		panic(fmt.Sprintf("testenv: make the cache directory (HOLDFAST_CACHE chooses another): %v", err))
	}
	return dir
}

func defaultCacheDir() string {
	if home, err := os.UserCacheDir(); err == nil {
		return filepath.Join(home, "holdfast")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("holdfast-cache-%d", os.Geteuid()))
}
