package guest_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
)

func TestBuildIsWholeAndCached(t *testing.T) {
	testenv.Need(t, guest.Tools...)
	image, err := guest.Build(t.Context(), guest.Options{})
	if err != nil {
		testenv.Lack(t, "%v", err)
	}
	before, err := os.Stat(image.Boot)
	if err != nil {
		t.Fatal(err)
	}
	again, err := guest.Build(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(again.Boot)
	if err != nil {
		t.Fatal(err)
	}
	if again != image || !os.SameFile(before, after) {
		t.Errorf("a second build made %v, the first %v", again, image)
	}
	machine, err := image.Clone(t.TempDir(), "one")
	if err != nil {
		t.Fatal(err)
	}
	for _, disk := range []string{machine.Boot, machine.Data} {
		out, err := exec.Command(testenv.Tool(t, "qemu-img"), "check", disk).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "No errors") {
			t.Errorf("qemu-img check %s: %v: %s", filepath.Base(disk), err, out)
		}
	}
}

func TestSequence(t *testing.T) {
	disk := make([]byte, guest.SequenceOffset+512)
	if n, err := guest.Sequence(bytes.NewReader(disk)); n != 0 || err != nil {
		t.Errorf("a disk on which the counter never ran: %d, %v", n, err)
	}
	copy(disk[guest.SequenceOffset:], "HOLDFAST-SEQ 000000000417\n")
	if n, err := guest.Sequence(bytes.NewReader(disk)); n != 417 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	copy(disk[guest.SequenceOffset:], "torn")
	if _, err := guest.Sequence(bytes.NewReader(disk)); err == nil {
		t.Error("a torn sector was accepted")
	}
}
