package core

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The house has floors, and a room may look down but never up or sideways: it imports rooms of lower floors only. So a
// room can be read, tested and replaced knowing only what lies below it, and what two rooms of one floor have to say to
// each other is an interface that one of them declares and cmd fills in.
//
// This file is the table and the judge. The tests read the import lines of every Go file that is not a test, whatever its
// build constraints, and put each one to the judge. Tests may import anything.

const module = "github.com/holdfast-dr/holdfast"

// floors says on which floor each room of core stands. A room that is not built yet may be listed.
var floors = map[string]int{
	"tenant": 0, "blob": 0, "chunk": 0, "claim": 0, "schedule": 0, "secret": 0,

	"pki": 1, "lease": 1, "quota": 1, "network": 1, "audit": 1, "access": 1, "point": 1, "job": 1,

	"repository": 2, "mover": 2, "gateway": 2, "host": 2, "worker": 2, "client": 2,

	"backup": 3, "restore": 3, "replica": 3, "cdp": 3, "failover": 3,

	"agent": 4, // below api, which serves its operations in the same document

	"api": 5, "web": 5,

	"state": 6,
}

// contract is the part of the sdk that rooms above the ground floor see: nouns, abilities, errors, and how disk bytes
// travel. Processes (sdk/plugin), the simulator and the conformance suite are for those named below.
var contract = []string{"sdk", "sdk/nbd"}

// mayAlso lists, for everything outside core's floors, what of ours it may import; and for rooms of core, what they may
// import besides lower floors. A name ending in /… means everything below.
var mayAlso = map[string][]string{
	"sdk":             {},
	"sdk/nbd":         {"sdk"},
	"sdk/sim":         {"sdk"},
	"sdk/plugin":      {"sdk", "sdk/nbd"},
	"sdk/conformance": {"sdk", "sdk/nbd", "sdk/plugin"},

	"plugins": {"sdk/…"}, // and plugins/internal/…
	"cmd":     {"core/…", "sdk/…"},
	"testenv": {"core/…", "sdk/…"},

	// These two start plugins, so they know that plugins are processes.
	"core/host":   {"sdk/plugin"},
	"core/worker": {"sdk/plugin"},
}

// keepers says which of our parts may import a third-party module that must not spread.
var keepers = []struct {
	module string
	rooms  []string
	reason string
}{
	{"google.golang.org/grpc", []string{"sdk/plugin"}, "gRPC is how a plugin process is reached, and nobody else's business"},
	{"github.com/hashicorp/go-plugin", []string{"sdk/plugin"}, "only the contract knows that plugins are processes"},
	{"github.com/spf13/viper", []string{"cmd"}, "configuration is read once, into structs, where the program is wired"},
	{"github.com/jackc/pgx", []string{"core/state"}, "rooms declare stores; state alone speaks to databases"},
	{"modernc.org/sqlite", []string{"core/state"}, "rooms declare stores; state alone speaks to databases"},
	{"github.com/pressly/goose", []string{"core/state"}, "state owns the migrations"},
	{"github.com/cockroachdb/pebble", []string{"core/repository"}, "the index is the repository's private cache"},
	{"github.com/digitalocean/go-libvirt", []string{"plugins", "testenv"}, "the core drives back-ends through plugins only"},
	{"github.com/vmware/govmomi", []string{"plugins", "testenv"}, "the core drives back-ends through plugins only"},
}

// roomOf names the room that a package of ours belongs to: core/blob for core/blob/dir, sdk/plugin for sdk/plugin/v1, cmd
// for cmd/holdfast, plugins/libvirt for everything below it. The argument is relative to the module.
func roomOf(pkg string) string {
	parts := strings.Split(pkg, "/")
	switch parts[0] {
	case "core", "sdk", "plugins":
		return path.Join(parts[:min(2, len(parts))]...)
	}
	return parts[0]
}

// judge returns what is wrong with one import line, or "" if the floors allow it. Both packages are relative to the
// module if they are ours.
func judge(from, to string) string {
	room := roomOf(from)
	if fault := unknownRoom(room); fault != "" {
		return fault
	}
	target, ours := strings.CutPrefix(to, module+"/")
	if !ours {
		return judgeForeign(room, to)
	}
	if into := roomOf(target); into == room || allowed(room, target, into) {
		return "" // inside a room the compiler's rule, no cycles, is enough
	}
	return explain(room, roomOf(target))
}

// unknownRoom asks for a decision about a package that the table does not know.
func unknownRoom(room string) string {
	name, inCore := strings.CutPrefix(room, "core/")
	_, known := mayAlso[room]
	switch {
	case inCore:
		if _, known = floors[name]; !known {
			return fmt.Sprintf("%s is a new room: give it the lowest floor that is above every room it imports, here in floors "+
				"(core/floors_test.go) and on the map (core/doc.go)", room)
		}
	case room == "core":
		// the map itself
	case strings.HasPrefix(room, "plugins/"):
		// one directory, one plugin
	case !known:
		return fmt.Sprintf("%s is a new part of the house: say in mayAlso (core/floors_test.go) what it may import, and on the "+
			"map (core/doc.go) what it is for", room)
	}
	return ""
}

// judgeForeign keeps the contract free of dependencies, and the modules that have a keeper with their keeper.
func judgeForeign(room, to string) string {
	standard := !strings.Contains(strings.Split(to, "/")[0], ".")
	if standard {
		return ""
	}
	if room == "sdk" {
		return "the package sdk is standard library only: a vendor gets the contract and nothing else with it"
	}
	for _, k := range keepers {
		if (to == k.module || strings.HasPrefix(to, k.module+"/")) && !slices.ContainsFunc(k.rooms, func(keeper string) bool {
			return room == keeper || strings.HasPrefix(room, keeper+"/")
		}) {
			return fmt.Sprintf("%s belongs to %s alone: %s", k.module, strings.Join(k.rooms, ", "), k.reason)
		}
	}
	return ""
}

// allowed reports whether a room may import a package (target) of another room (into).
func allowed(room, target, into string) bool {
	lists := [][]string{mayAlso[room]}
	if strings.HasPrefix(room, "plugins/") {
		lists = append(lists, mayAlso["plugins"], []string{"plugins/internal/…"})
	}
	if name, inCore := strings.CutPrefix(room, "core/"); inCore && room != "core/client" {
		mine, others := floors[name], floor(into)
		if mine > 0 {
			lists = append(lists, contract)
		}
		if others >= 0 && others < mine {
			return true
		}
	}
	for _, list := range lists {
		for _, entry := range list {
			below, tree := strings.CutSuffix(entry, "/…")
			if into == entry || tree && (target == below || strings.HasPrefix(target, below+"/")) {
				return true
			}
		}
	}
	return false
}

// floor returns the floor of a room of core, and -1 for everything else.
func floor(room string) int {
	name, inCore := strings.CutPrefix(room, "core/")
	if f, known := floors[name]; inCore && known {
		return f
	}
	return -1
}

// explain says why a room may not import another one, and what to do instead.
func explain(room, into string) string {
	mine, theirs := floor(room), floor(into)
	switch {
	case room == "core/client":
		return "client is generated from the API document and knows nothing else of ours"
	case strings.HasPrefix(into, "plugins"):
		return "nobody imports a plugin: it is a program, started through core/host"
	case into == "testenv":
		return "only tests and the demo use testenv"
	case strings.HasPrefix(room, "plugins/"):
		return "a plugin sees the sdk and plugins/internal, as a vendor's does"
	case strings.HasPrefix(room, "sdk"):
		return fmt.Sprintf("%s may import %v of ours: the contract must not drag the core along", room, mayAlso[room])
	case theirs == floors["state"]:
		return "only cmd and tests import state: declare the store that you need as an interface, state implements it"
	case mine == 0:
		return "a room of floor 0 imports nothing of ours: move what is shared to the room that understands it"
	case mine >= 0 && mine == theirs:
		return fmt.Sprintf("both stand on floor %d: declare the interface where it is consumed, in built-in types and those of "+
			"lower floors, and let cmd fill it in", mine)
	case mine >= 0 && theirs > mine:
		return fmt.Sprintf("it looks up, from floor %d to floor %d: declare an interface here, or move the code up", mine, theirs)
	}
	return "the table in core/floors_test.go does not allow it"
}

// importsOfTheHouse reads the import lines of every Go file of the module that is not a test, by package. It reads files
// and does not ask the go command, so that every platform and cgo setting is covered and cached test results expire.
func importsOfTheHouse(t *testing.T) map[string][]string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string][]string{}
	err = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if file != root && (name == "testdata" || name == "bin" || name == "build" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil && file != root {
				return filepath.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		imports[pkg] = slices.Grow(imports[pkg], len(parsed.Imports)) // a package without imports counts too
		for _, line := range parsed.Imports {
			to, err := strconv.Unquote(line.Path.Value)
			if err != nil {
				return err
			}
			imports[pkg] = append(imports[pkg], to)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imports
}

func TestEveryRoomLooksDownOnly(t *testing.T) {
	imports := importsOfTheHouse(t)
	if len(imports) < 2 || imports["sdk"] == nil {
		t.Fatalf("found %d packages and sdk is among them: %v; the walk is broken", len(imports), imports["sdk"] != nil)
	}
	for _, from := range slices.Sorted(maps.Keys(imports)) {
		if fault := unknownRoom(roomOf(from)); fault != "" {
			t.Errorf("%s: %s", from, fault)
			continue
		}
		lines := imports[from]
		slices.Sort(lines)
		for _, to := range slices.Compact(lines) {
			if fault := judge(from, to); fault != "" {
				t.Errorf("%s imports %q: %s", from, strings.TrimPrefix(to, module+"/"), fault)
			}
		}
	}
}

func TestTheMapShowsEveryRoom(t *testing.T) {
	drawing, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.FieldsFunc(string(drawing), func(r rune) bool { return !('a' <= r && r <= 'z' || r == '/') })
	for pkg := range importsOfTheHouse(t) {
		room := roomOf(pkg)
		name, inCore := strings.CutPrefix(room, "core/")
		if inCore && !slices.Contains(words, name) {
			t.Errorf("%s is not on the map in core/doc.go: say what it is for and who calls it", room)
		}
	}
}

func TestTheJudgeCatchesBadImports(t *testing.T) {
	ours := func(pkg string) string { return module + "/" + pkg }
	for _, bad := range []struct{ from, to, says string }{
		{"core/chunk", ours("core/tenant"), "floor 0"},
		{"core/chunk", ours("sdk"), "floor 0"},
		{"core/pki", ours("core/audit"), "both stand on floor 1"},
		{"core/repository", ours("core/mover"), "both stand on floor 2"},
		{"core/backup", ours("core/restore"), "both stand on floor 3"},
		{"core/mover", ours("core/backup"), "looks up"},
		{"core/blob/dir", ours("core/point"), "floor 0"},
		{"core/client", ours("core/tenant"), "client"},
		{"core/client", ours("sdk"), "client"},
		{"core/api", ours("core/state"), "only cmd and tests import state"},
		{"core/state", ours("cmd/holdfast"), "does not allow"},
		{"core/mover", ours("sdk/plugin"), "does not allow"},
		{"core/agent", ours("sdk/sim"), "does not allow"},
		{"core/host", ours("plugins/sim"), "nobody imports a plugin"},
		{"cmd/holdfast", ours("plugins/sim"), "nobody imports a plugin"},
		{"cmd/holdfast", ours("testenv"), "only tests"},
		{"plugins/libvirt", ours("core/chunk"), "as a vendor's does"},
		{"plugins/libvirt", ours("plugins/sim"), "nobody imports a plugin"},
		{"sdk", ours("sdk/nbd"), "must not drag"},
		{"sdk/sim", ours("sdk/plugin"), "must not drag"},
		{"sdk/plugin/v1", ours("core/chunk"), "must not drag"},
		{"sdk", "golang.org/x/sync/errgroup", "standard library only"},
		{"core/host", "google.golang.org/grpc/codes", "sdk/plugin alone"},
		{"core/agent", "github.com/spf13/viper", "cmd alone"},
		{"core/agent", "github.com/jackc/pgx/v5", "core/state alone"},
		{"core/attic", "fmt", "new room"},
		{"tools/gen", "fmt", "new part of the house"},
		{"sdk/extra", "fmt", "new part of the house"},
	} {
		if got := judge(bad.from, bad.to); !strings.Contains(got, bad.says) {
			t.Errorf("judge(%s, %s) = %q, want a fault that says %q", bad.from, bad.to, got, bad.says)
		}
	}
	for _, good := range []struct{ from, to string }{
		{"core/point", ours("core/chunk")},
		{"core/mover", ours("sdk")},
		{"core/mover", ours("sdk/nbd")},
		{"core/host", ours("sdk/plugin")},
		{"core/blob/dir", ours("core/blob")},
		{"core/backup", ours("core/mover")},
		{"core/agent", ours("core/backup")},
		{"core/state", ours("core/repository")},
		{"cmd/holdfast", ours("core/state")},
		{"cmd/holdfast", ours("sdk/conformance")},
		{"testenv/demo", ours("core/client")},
		{"testenv/demo", ours("testenv")},
		{"plugins/vsphere", ours("plugins/internal/vmware")},
		{"plugins/internal/vmware", ours("sdk")},
		{"plugins/sim", ours("sdk/sim")},
		{"sdk/plugin", ours("sdk/plugin/v1")},
		{"sdk/plugin", "google.golang.org/grpc"},
		{"sdk/conformance", ours("sdk/plugin")},
		{"cmd/holdfast", "github.com/spf13/viper"},
		{"sdk", "iter"},
	} {
		if fault := judge(good.from, good.to); fault != "" {
			t.Errorf("judge(%s, %s) = %q, want nothing", good.from, good.to, fault)
		}
	}
}
