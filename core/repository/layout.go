package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// Folders of a cloud repository, below its id.
const (
	formatObject    = "format"
	ownerFolder     = "owner/"
	keysFolder      = "keys/"
	packsFolder     = "packs/"
	mapsFolder      = "maps/"
	pointsFolder    = "points/"
	tombstoneFolder = "tombstones/"
	labelFolder     = "label/"

	voidSuffix = ".void"
)

func (r *Repository) name(parts ...string) string { return r.id + "/" + strings.Join(parts, "") }

// packObject is a pack in the store.
type packObject struct {
	id   PackID
	kind PackKind
	name string
	size int64
}

func packFolder(kind PackKind) string {
	if kind == chunk.KindPage {
		return mapsFolder
	}
	return packsFolder
}

// packName spreads packs over folders by the last two digits of the id, which
// are random; the first ones are a time.
func (r *Repository) packName(kind PackKind, id PackID) string {
	text := id.String()
	return r.name(packFolder(kind), text[len(text)-2:], "/", text)
}

// packs lists the packs of a kind. Objects that are not named like a pack are
// passed over here; Verify reports them.
func (r *Repository) packs(ctx context.Context, kind PackKind) iter.Seq2[packObject, error] {
	return func(yield func(packObject, error) bool) {
		for object, err := range r.blobs.List(ctx, r.name(packFolder(kind))) {
			if err != nil {
				yield(packObject{}, fmt.Errorf("list packs: %w", err))
				return
			}
			if p, ok := r.packOf(kind, object); ok && !yield(p, nil) {
				return
			}
		}
	}
}

func (r *Repository) packOf(kind PackKind, object blob.Object) (packObject, bool) {
	id, err := ParsePackID(object.Name[strings.LastIndexByte(object.Name, '/')+1:])
	if err != nil || r.packName(kind, id) != object.Name {
		return packObject{}, false
	}
	return packObject{id: id, kind: kind, name: object.Name, size: object.SizeBytes}, true
}

// manifestName is where a point's manifest lies: the epoch keeps the attempts
// of two servers apart.
func (r *Repository) manifestName(p point.Public, epoch uint64) string {
	return r.name(pointsFolder, string(p.Machine), "/", string(p.Point), ".", strconv.FormatUint(epoch, 10))
}

// manifestObject is what a name below points/ says.
type manifestObject struct {
	name    string // of the manifest, also for its void
	machine point.MachineID
	point   point.ID
	epoch   uint64
	void    bool
	size    int64
}

func (r *Repository) parseManifestName(object blob.Object) (m manifestObject, ok bool) {
	return parseManifestName(r.id, object)
}

func parseManifestName(repository string, object blob.Object) (m manifestObject, ok bool) {
	name, void := strings.CutSuffix(object.Name, voidSuffix)
	path, ok := strings.CutPrefix(name, repository+"/"+pointsFolder)
	if !ok {
		return m, false
	}
	machine, file, ok := strings.Cut(path, "/")
	if !ok {
		return m, false
	}
	id, digits, ok := strings.Cut(file, ".")
	if !ok {
		return m, false
	}
	epoch, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || strconv.FormatUint(epoch, 10) != digits || !isUUID(id) || !isUUID(machine) {
		return m, false
	}
	return manifestObject{name: name, machine: point.MachineID(machine), point: point.ID(id), epoch: epoch, void: void, size: object.SizeBytes}, true
}

func isUUID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id.String() == s
}

func epochName(epoch uint64) string { return fmt.Sprintf("%020d", epoch) }

// newestEpoch is the highest number below owner/, 0 if there is none.
func (r *Repository) newestEpoch(ctx context.Context) (uint64, error) {
	newest := uint64(0)
	for object, err := range r.blobs.List(ctx, r.name(ownerFolder)) {
		if err != nil {
			return 0, fmt.Errorf("list owners: %w", err)
		}
		epoch, err := strconv.ParseUint(strings.TrimPrefix(object.Name, r.name(ownerFolder)), 10, 64)
		if err == nil {
			newest = max(newest, epoch)
		}
	}
	return newest, nil
}

// maxSmall bounds the objects that are JSON with a checksum.
const maxSmall = 64 << 10

const sumPrefix = "crc32c "

// encodeSmall is one line of JSON and one line with the CRC-32C of the first,
// its end of line included.
func encodeSmall(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	return fmt.Appendf(b, "%s%08x\n", sumPrefix, crc32.Checksum(b, castagnoli)), nil
}

func decodeSmall(b []byte, v any) error {
	end := bytes.IndexByte(b, '\n') + 1
	if want := fmt.Sprintf("%s%08x\n", sumPrefix, crc32.Checksum(b[:end], castagnoli)); end == 0 || string(b[end:]) != want {
		return fmt.Errorf("checksum: %w", chunk.ErrDamaged)
	}
	if err := json.Unmarshal(b[:end], v); err != nil {
		return fmt.Errorf("%w: %w", err, chunk.ErrDamaged)
	}
	return nil
}

// putBytes makes a small object. One that exists with the same content is as
// good as new: an earlier answer was lost.
func (r *Repository) putBytes(ctx context.Context, name string, content []byte) error {
	err := r.blobs.Put(ctx, name, bytes.NewReader(content), int64(len(content)))
	if !errors.Is(err, blob.ErrExists) {
		return err
	}
	present, readErr := blob.Read(ctx, r.blobs, name, int64(max(len(content), 1)))
	if readErr == nil && bytes.Equal(present, content) {
		return nil
	}
	return errors.Join(err, readErr)
}

// formatJSON is the object that says what a cloud repository is.
type formatJSON struct {
	Format     int    `json:"format"`
	Repository string `json:"repository"`
	ChunkSize  int64  `json:"chunk_size"`
	FanOut     int    `json:"fan_out"`
}

// tombstoneJSON says that a point was deleted: since when, by whom.
type tombstoneJSON struct {
	Point     string `json:"point"`
	Machine   string `json:"machine"`
	Forgotten int64  `json:"forgotten"` // microseconds since 1970, UTC
	By        string `json:"by"`
	Epoch     uint64 `json:"epoch,omitempty"` // of who wrote it
}
