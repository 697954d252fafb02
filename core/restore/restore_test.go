package restore_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/restore"
	"github.com/holdfast-dr/holdfast/core/restore/image"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv"
)

const mib = 1 << 20

// provider keeps manifests by point.
type provider struct {
	*movertest.Store
	manifests map[point.ID][]byte
	last      []byte
}

func (p *provider) Manifest(_ context.Context, id point.ID) ([]byte, error) {
	if m := p.manifests[id]; m != nil {
		return m, nil
	}
	return nil, sdk.ErrNotFound
}

func (p *provider) Last(context.Context, point.MachineID) ([]byte, error) { return p.last, nil }

func (p *provider) Begin(context.Context, point.MachineID, point.ID, string) (backup.Session, error) {
	return session{p}, nil
}

type session struct{ *provider }

func (session) ID() chunk.SessionID               { return chunk.SessionID{1} }
func (session) DamagedChunks() ([]chunk.ID, bool) { return nil, false }
func (session) Abort(context.Context) error       { return nil }

func (s session) Commit(_ context.Context, sealed []byte) error {
	public, err := point.ParsePublic(sealed)
	if err == nil {
		s.manifests[public.Point], s.last = sealed, sealed
	}
	return err
}

// site is a machine whose points are at a provider, and what it held at each.
type site struct {
	*testing.T
	hv       *sim.Hypervisor
	machine  sdk.Machine
	provider *provider
	keys     *chunk.Keyring
	id       point.MachineID
	repo     string
	points   []point.ID
	moments  [][][]byte // by point and disk
}

func newSite(t *testing.T, disks ...int64) *site {
	t.Helper()
	s := &site{T: t, hv: sim.New(), keys: chunk.NewKeyring(), id: point.MachineID(uuid.NewString()), repo: uuid.NewString(),
		provider: &provider{Store: movertest.NewStore(), manifests: make(map[point.ID][]byte)}}
	var err error
	s.machine, err = s.hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: disks, CPUs: 3})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) write(disk int, off int64, n int, seed uint64) {
	s.Helper()
	r, b := rand.New(rand.NewPCG(seed, 1)), make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32N(8))
	}
	if err := s.hv.WriteDisk(s.machine.ID, s.machine.Disks[disk].ID, off, b); err != nil {
		s.Fatal(err)
	}
}

func (s *site) backup() {
	s.Helper()
	res, err := backup.Run(s.Context(), backup.Request{
		Platform: s.hv.Connect(sim.Settings{}), PlatformName: "sim", Source: s.machine.ID, Op: sdk.Op{ID: uuid.NewString()},
		RepositoryID: s.repo, Repository: s.provider, Keys: s.keys, Machine: s.id,
	})
	if err != nil {
		s.Fatal(err)
	}
	s.points = append(s.points, res.Point)
	s.moments = append(s.moments, content(s.T, s.hv, s.machine))
}

func content(t *testing.T, hv *sim.Hypervisor, m sdk.Machine) [][]byte {
	t.Helper()
	var disks [][]byte
	for _, d := range m.Disks {
		b := make([]byte, d.SizeBytes)
		if err := hv.ReadDisk(m.ID, d.ID, 0, b); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, b)
	}
	return disks
}

func (s *site) open(i int) *restore.Point {
	s.Helper()
	p, err := restore.Open(s.Context(), s.provider, s.keys, s.points[i])
	if err != nil {
		s.Fatal(err)
	}
	return p
}

func equal(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// clean checks that no draft is left.
func clean(t *testing.T, hv *sim.Hypervisor) {
	t.Helper()
	objects, err := hv.Objects()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if strings.HasPrefix(o, "draft") {
			t.Errorf("%s was left", o)
		}
	}
}

func TestEveryPointRestoresItsMachine(t *testing.T) {
	for _, shape := range []sdk.Shape{sdk.ShapeRandom, sdk.ShapeSequential} {
		t.Run(string(shape), func(t *testing.T) {
			s := newSite(t, 24*mib, 5*mib+512)
			s.write(0, 0, 6*mib, 1)
			s.write(1, 5*mib-100, 612, 2)
			s.backup()
			s.write(0, 3*mib, 2*mib, 3)
			s.write(0, 20*mib, mib, 4)
			s.backup()
			target := sim.New()
			for i := range s.points {
				res, err := restore.Machine(t.Context(), restore.MachineRequest{
					Platform: target.Connect(sim.Settings{Shape: shape}), PlatformName: "sim", Op: sdk.Op{ID: uuid.NewString()}, Point: s.open(i),
					Name: "copy", Start: true,
				})
				if err != nil {
					t.Fatal(err)
				}
				m, err := target.Find(string(res.Machine))
				if err != nil {
					t.Fatal(err)
				}
				if m.Name != "copy" || m.CPUs != 3 || m.State != sdk.StateRunning || !res.Started {
					t.Errorf("restored machine %+v", m)
				}
				if !equal(content(t, target, m), s.moments[i]) {
					t.Errorf("point %d comes back with other bytes", i)
				}
			}
			clean(t, target)
		})
	}
}

// An agent that dies between the commit and its note of it repeats the restore:
// the machine that is there is the answer, and no second one is made.
func TestRepeatedRestoreFindsTheMachineThatItMade(t *testing.T) {
	for _, replace := range []bool{false, true} {
		s := newSite(t, 8*mib, mib)
		s.write(0, 0, 2*mib, 1)
		s.backup()
		request := restore.MachineRequest{Platform: s.hv.Connect(sim.Settings{}), PlatformName: "sim", Op: sdk.Op{ID: uuid.NewString()}, Point: s.open(0), Name: "copy", Start: true}
		if replace {
			request.Name, request.Replace, request.Start = "", s.machine.ID, false
		}
		first, err := restore.Machine(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		request.Platform = s.hv.Connect(sim.Settings{})
		again, err := restore.Machine(t.Context(), request)
		if err != nil {
			t.Fatalf("the repeat, replace %t: %v", replace, err)
		}
		m, err := s.hv.Find(string(again.Machine))
		if err != nil {
			t.Fatal(err)
		}
		if again.Machine != first.Machine || again.Started != first.Started || !equal(content(t, s.hv, m), s.moments[0]) {
			t.Errorf("replace %t: the first made %s, the repeat answers %s, or its bytes differ", replace, first.Machine, again.Machine)
		}
		machines := 0
		objects, err := s.hv.Objects()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			if strings.HasPrefix(o, "machine ") {
				machines++
			}
		}
		if want := map[bool]int{false: 2, true: 1}[replace]; machines != want {
			t.Errorf("replace %t: %d machines, want %d", replace, machines, want)
		}
	}
}

func TestReplaceKeepsTheMachine(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 2*mib, 1)
	s.backup()
	s.write(0, 0, 4*mib, 2)
	res, err := restore.Machine(t.Context(), restore.MachineRequest{
		Platform: s.hv.Connect(sim.Settings{}), PlatformName: "sim", Op: sdk.Op{ID: uuid.NewString()}, Point: s.open(0), Replace: s.machine.ID,
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.hv.Find(string(s.machine.ID))
	if err != nil {
		t.Fatal(err)
	}
	if res.Machine != s.machine.ID || !equal(content(t, s.hv, m), s.moments[0]) {
		t.Errorf("machine %s was replaced by %s, or its bytes differ", s.machine.ID, res.Machine)
	}
}

func TestFailedRestoreLeavesNoDraft(t *testing.T) {
	s := newSite(t, 16*mib)
	s.write(0, 0, 8*mib, 1)
	s.backup()
	target := sim.New()
	request := func() restore.MachineRequest {
		return restore.MachineRequest{Platform: target.Connect(sim.Settings{}), Op: sdk.Op{ID: uuid.NewString()}, Point: s.open(0)}
	}
	bad := s.provider.Names(chunk.KindData)[7]
	s.provider.Flip(chunk.KindData, bad)
	if _, err := restore.Machine(t.Context(), request()); !errors.Is(err, chunk.ErrDamaged) {
		t.Errorf("restore of a damaged point = %v", err)
	}
	clean(t, target)
	s.provider.Flip(chunk.KindData, bad)

	ctx, cancel := context.WithCancel(t.Context())
	s.provider.OnRead = func(context.Context, chunk.Kind, []chunk.ID) error { cancel(); return ctx.Err() }
	if _, err := restore.Machine(ctx, request()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled restore = %v", err)
	}
	clean(t, target)
	s.provider.OnRead = nil

	if err := target.SetFaults(sim.Fault{Call: "CommitDraft", Action: sim.ActionError, Code: sdk.CodeDenied}); err != nil {
		t.Fatal(err)
	}
	if _, err := restore.Machine(t.Context(), request()); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("restore = %v", err)
	}
	clean(t, target)
	if machines, err := target.Machines(); err != nil || len(machines) != 0 {
		t.Errorf("machines %v, %v", machines, err)
	}
}

func TestMachineThatDoesNotStartIsStillRestored(t *testing.T) {
	s := newSite(t, mib)
	s.backup()
	target := sim.New()
	if err := target.SetFaults(sim.Fault{Call: "Start", Action: sim.ActionError, Code: sdk.CodeDenied}); err != nil {
		t.Fatal(err)
	}
	res, err := restore.Machine(t.Context(), restore.MachineRequest{
		Platform: target.Connect(sim.Settings{}), Op: sdk.Op{ID: uuid.NewString()}, Point: s.open(0), Start: true})
	var start *restore.StartError
	if !errors.As(err, &start) || start.Machine != res.Machine || res.Machine == "" {
		t.Errorf("restore = %+v, %v", res, err)
	}
}

func TestRepositoryThatAnswersWithAnotherPointIsRefused(t *testing.T) {
	s := newSite(t, mib)
	s.backup()
	s.backup()
	s.provider.manifests[s.points[1]] = s.provider.manifests[s.points[0]]
	if _, err := restore.Open(t.Context(), s.provider, s.keys, s.points[1]); !errors.Is(err, point.ErrForged) {
		t.Errorf("Open = %v", err)
	}
	if _, err := restore.Open(t.Context(), s.provider, chunk.NewKeyring(), s.points[0]); err == nil {
		t.Error("another keyring opens the point")
	}
}

func TestDiskBecomesAFile(t *testing.T) {
	s := newSite(t, 2*mib, 20*mib)
	s.write(1, 100, 5*mib, 1)
	s.write(1, 19*mib, mib, 2)
	s.backup()
	p := s.open(0)
	i, err := p.Disk(s.machine.Disks[1].Name)
	if err != nil || i != 1 {
		t.Fatalf("Disk = %d, %v", i, err)
	}
	for _, format := range image.Formats() {
		t.Run(string(format), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "db."+string(format))
			var last restore.Progress
			res, err := restore.File(t.Context(), restore.FileRequest{Point: p, Disk: i, Path: path, Format: format,
				Progress: func(p restore.Progress) { last = p }})
			if err != nil {
				t.Fatal(err)
			}
			if res.WrittenBytes < 6*mib || last.DoneBytes != 20*mib || last.TotalBytes != 20*mib {
				t.Errorf("result %+v, last progress %+v", res, last)
			}
			raw := path
			if format != image.Raw {
				testenv.Need(t, "qemu-img")
				raw = filepath.Join(dir, "back.raw")
				if out, err := exec.Command(testenv.Tool(t, "qemu-img"), "convert", "-O", "raw", path, raw).CombinedOutput(); err != nil {
					t.Fatalf("qemu-img: %v\n%s", err, out)
				}
			}
			got, err := os.ReadFile(raw)
			if err != nil || !bytes.Equal(got, s.moments[0][1]) {
				t.Errorf("the file's disk differs (%v)", err)
			}
			if _, err := restore.File(t.Context(), restore.FileRequest{Point: p, Disk: i, Path: path, Format: format}); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a second restore to the same name = %v", err)
			}
			if _, err := restore.File(t.Context(), restore.FileRequest{Point: p, Disk: i, Path: path, Format: format, Overwrite: true}); err != nil {
				t.Errorf("overwriting: %v", err)
			}
		})
	}
}

func TestFailedFileLeavesNothing(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	s.provider.Flip(chunk.KindData, s.provider.Names(chunk.KindData)[9])
	for _, format := range image.Formats() {
		dir := t.TempDir()
		_, err := restore.File(t.Context(), restore.FileRequest{Point: s.open(0), Path: filepath.Join(dir, "x"), Format: format})
		if !errors.Is(err, chunk.ErrDamaged) {
			t.Errorf("%s: File = %v", format, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: %v is left", format, left)
		}
	}
}

// Two restores to the same name would write into the same file, and the first
// to end would call the mixture complete.
func TestOneRestoreAtATimeWritesAFile(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	s.write(0, 0, 4*mib, 2)
	s.backup()
	path := filepath.Join(t.TempDir(), "x")
	var once sync.Once
	_, err := restore.File(t.Context(), restore.FileRequest{Point: s.open(0), Path: path, Format: image.Raw, Progress: func(restore.Progress) {
		once.Do(func() {
			_, err := restore.File(t.Context(), restore.FileRequest{Point: s.open(1), Path: path, Format: image.Raw, Overwrite: true})
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("a second restore to the same name = %v", err)
			}
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, s.moments[0][0]) {
		t.Errorf("the file's disk differs (%v)", err)
	}
}

func TestVerifyNamesWhatIsDamaged(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	p := s.open(0)
	ids := s.provider.Names(chunk.KindData)
	s.provider.Flip(chunk.KindData, ids[3])
	s.provider.Remove(chunk.KindData, ids[5])
	found := make(chan mover.Damage, 10)
	stats, err := p.Verify(t.Context(), mover.Options{}, func(_ int, d mover.Damage) error { found <- d; return nil })
	if err != nil || stats[0].Damaged != 2 || len(found) != 2 || stats[0].Chunks != 14 {
		t.Errorf("Verify = %+v, %v, %d reports", stats, err, len(found))
	}
	if d := <-found; d.Length != chunk.Size || d.ID.IsZero() {
		t.Errorf("report %+v", d)
	}
}
