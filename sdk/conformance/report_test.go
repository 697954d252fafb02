package conformance_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestReportGolden(t *testing.T) {
	r := conformance.NewReport(conformance.Subject{
		Name: "mine", Version: "1.2.3", Protocol: 1, Abilities: []sdk.Ability{sdk.AbilitySource}, SHA256: strings.Repeat("0f", 32),
	}, "linux/amd64", time.Date(2026, 1, 2, 16, 4, 5, 678, time.FixedZone("", 3600)))
	r.Add(conformance.Result{Check: "target/abort-leaves-nothing", Unchecked: []string{"what is left"}})
	r.Add(conformance.Result{Check: "platform/inventory", Took: 12345678 * time.Nanosecond})
	r.Add(conformance.Result{Check: "source/reader", Problems: []string{"wrong \"bytes\"", "size <0>"}, Took: 2 * time.Second})
	r.Add(conformance.Result{Check: "source/data-cut", Skipped: "the fixture has no wire between host and disks"})
	r.Add(conformance.Result{Check: "power/start-and-stop", Skipped: "half-way", Problems: []string{"it does not stop"}})
	got, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	golden := filepath.Join("testdata", "report.golden.json")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("a report as JSON (-want +got):\n%s", diff)
	}
	var again conformance.Report
	decoder := json.NewDecoder(bytes.NewReader(want))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*r, again); diff != "" {
		t.Errorf("a report that was read back (-want +got):\n%s", diff)
	}
}

// TestHook has a shell script stand for a back-end of files.
func TestHook(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "the hook.sh")
	if err := os.WriteFile(script, []byte(`#!/bin/sh
cd "$1" || exit 1
case "$2" in
verbs) printf 'write\nread\nremove\n\nobjects\nprovoke\n' ;;
write) dd of="$3-$4" bs=1 seek="$5" conv=notrunc 2>/dev/null ;;
read) dd if="$3-$4" bs=1 skip="$5" count="$6" 2>/dev/null ;;
remove) [ -e "$3-vda" ] || { echo "no machine $3" >&2; exit 1; }; rm "$3"-* ;;
objects) ls ;;
provoke) [ "$3" = busy ] || exit 3 ;;
esac
`), 0o755); err != nil {
		t.Fatal(err)
	}
	lab := filepath.Join(dir, "lab")
	if err := os.Mkdir(lab, 0o755); err != nil {
		t.Fatal(err)
	}
	f := conformance.Fixture{Machine: "web 01"}
	if err := conformance.Hook("'"+script+"' '"+lab+"'").Fill(t.Context(), &f); err != nil {
		t.Fatal(err)
	}
	if err := f.Write("vda", 3, []byte("written by $(nobody)\n")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if err := f.Read("web 01", "vda", 3, got); err != nil || string(got) != "written by" {
		t.Errorf("read: %q, %v", got, err)
	}
	if err := f.Read("web 01", "vda", 20, got); err == nil {
		t.Error("a hook that printed too little was believed")
	}
	if list, err := f.Objects(); err != nil || cmp.Diff([]string{"web 01-vda"}, list) != "" {
		t.Errorf("objects: %q, %v", list, err)
	}
	if err := f.Provoke(sdk.CodeBusy); err != nil {
		t.Errorf("provoke: %v", err)
	}
	if err := f.Provoke(sdk.CodeFenced); !errors.Is(err, sdk.ErrUnsupported) {
		t.Errorf("provoke what the hook cannot: %v, want ErrUnsupported", err)
	}
	if err := f.Remove("web 01"); err != nil {
		t.Errorf("remove: %v", err)
	}
	if err := f.Remove("web 01"); err == nil || !strings.Contains(err.Error(), "no machine web 01") {
		t.Errorf("remove, and again: %v, want what the hook says", err)
	}
}

func TestHookWithoutVerbs(t *testing.T) {
	var f conformance.Fixture
	if err := conformance.Hook(`true`).Fill(t.Context(), &f); err != nil || f.Write != nil || f.Read != nil || f.Remove != nil || f.Objects != nil || f.Provoke != nil {
		t.Errorf("a hook that knows nothing: %v, %+v", err, f)
	}
	for _, hook := range []conformance.Hook{"false", "/nowhere/at/all", "echo sing"} {
		if err := hook.Fill(t.Context(), &f); err == nil {
			t.Errorf("hook %q: no error", hook)
		}
	}
}
