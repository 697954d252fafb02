package state

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/testenv"
)

// smallDisk is a directory on a disk of a size; fill takes all of it, and empty
// gives it back.
func smallDisk(t *testing.T, size string) (dir string, fill, empty func()) {
	t.Helper()
	testenv.NeedRoot(t)
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "others")
	fill = func() {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for block := make([]byte, 4<<10); ; {
			if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir, fill, func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// Other programs fill the disk of the database: claims are renewed, so that what
// is open stays open, what somebody decides is refused with the disk and what it
// lacks, and everything works again when there is room.
func TestFullDiskRefusesDecisionsAndKeepsClaims(t *testing.T) {
	dir, fill, empty := smallDisk(t, "48m")
	db := openTest(t, "sqlite:"+filepath.Join(dir, "state.db"))
	ctx := t.Context()
	held, err := db.Claims().Acquire(ctx, "repository/x", claim.Holder{Node: "one", Instance: "1"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	newTenant(t, db, "before")
	fill()
	var refused error
	for range 2000 { // the log has room for some
		if _, refused = db.Tenants().Create(asAdmin(t), tenant.Tenant{Name: newID(), Enabled: true}); refused != nil {
			break
		}
	}
	wantErr(t, refused, blob.ErrFull)
	fill() // what the ballast left is taken, too, but for what the log has
	_, refused = db.Tenants().Create(asAdmin(t), tenant.Tenant{Name: "during", Enabled: true})
	var full *blob.FullError
	if !errors.As(refused, &full) || full.Directory != dir || full.NeededBytes <= full.FreeBytes || full.Hint() == "" {
		t.Fatalf("a decision on a full disk: %v", refused)
	}
	for i := range 3000 { // three hundred repositories for two minutes
		if held, err = db.Claims().Renew(ctx, held, time.Minute); err != nil {
			t.Fatalf("renewal %d on a full disk: %v", i, err)
		}
	}
	if all := must[[]tenant.Tenant](t)(db.Tenants().List(ctx, tenant.Query{Text: "before"})); len(all) != 1 {
		t.Errorf("read on a full disk: %v", all)
	}
	empty()
	newTenant(t, db, "after")
	if info, err := os.Stat(filepath.Join(dir, "state.db.reserve")); err != nil || info.Size() < ballastBytes {
		t.Errorf("the reserve is not put back: %v, %v", info, err)
	}
	var ok string
	if err := db.reader.QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
		t.Errorf("the database is %s, %v", ok, err)
	}
}
