package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

// do runs one command and returns what it printed.
func do(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := control(args[0], args[1:], strings.NewReader(stdin), &out); err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return out.String()
}

func TestMachineByHand(t *testing.T) {
	dir := t.TempDir()
	id := strings.TrimSpace(do(t, "", "create", dir, "db", "1M", "512K"))
	do(t, "", "write", dir, "db", "vda", "4K", "typed")
	do(t, strings.Repeat("piped", 1000), "write", dir, id, "vdb", "0")
	if got := do(t, "", "read", dir, "db", "vda", "4096", "5"); got != "typed" {
		t.Errorf("read %q, want typed", got)
	}
	want := make([]byte, 512<<10)
	copy(want, strings.Repeat("piped", 1000))
	if got := do(t, "", "hash", dir, "db", "vdb"); got != fmt.Sprintf("%x  vdb\n", sha256.Sum256(want)) {
		t.Errorf("hash of vdb: %s", got)
	}
	do(t, "", "fill", dir, "db", "vda", "0", "1M", "seed")
	first := do(t, "", "hash", dir, "db")
	do(t, "", "fill", dir, "db", "vda", "0", "1M", "seed")
	if again := do(t, "", "hash", dir, "db"); again != first {
		t.Error("the same seed fills differently")
	}
	if got := do(t, "", "list", dir); got != id+"\tdb\trunning\tvda=1048576,vdb=524288\n" {
		t.Errorf("list: %q", got)
	}
	do(t, "", "power", dir, "db", "off")
	do(t, "", "faults", dir, `[{"call":"Probe","action":"error","code":"busy"}]`)
	do(t, "", "faults", dir)
	do(t, "", "delete", dir, "db")
	if got := do(t, "", "objects", dir); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

func TestMistakesByHand(t *testing.T) {
	dir := t.TempDir()
	do(t, "", "create", dir, "db", "1M")
	for _, args := range [][]string{
		{"unknown", dir}, {"create", dir, "x"}, {"create", dir, "x", "1Q"}, {"create", dir, "x", "-1"}, {"create", dir, "x", "9999999T"},
		{"create", dir, "x", "100"}, {"hash", dir, "none"}, {"write", dir, "db", "vdz", "0", "x"}, {"write", dir, "db", "vda", "1M", "x"},
		{"power", dir, "db", "sideways"}, {"faults", dir, "{"}, {"faults", dir, `[{"call":"Probe","action":"sing"}]`},
	} {
		if err := control(args[0], args[1:], strings.NewReader(""), new(bytes.Buffer)); err == nil {
			t.Errorf("%s: no error", strings.Join(args[2:], " "))
		}
	}
}
