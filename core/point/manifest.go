package point

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// ID names a point; MachineID names, for as long as the tenant keeps it, the
// machine whose points belong together. Both are UUIDs made by the agent, which
// tell the provider nothing.
type (
	ID        string
	MachineID string
)

// NewID makes a point id; ids made later sort later.
func NewID() ID { return ID(uuid.Must(uuid.NewV7()).String()) }

// Limits that a decoder enforces.
const (
	MaxManifest = 8 << 20 // bytes of a whole manifest
	MaxDisks    = 256
)

// Kind says how a point was read from its source. It changes nothing about how
// the point is restored: each is a full point.
type Kind string

// The kinds of point.
const (
	KindFull        Kind = "full"        // no base; everything was read
	KindIncremental Kind = "incremental" // what the change tracker named was read
	KindCompare     Kind = "compare"     // everything was read and compared with the base
)

// Manifest is one point. Public is readable by the provider, Private is not.
type Manifest struct {
	Public  Public
	Private Private
}

// Public is what the provider sees of a point.
type Public struct {
	Format     int               `json:"format"`
	Repository string            `json:"repository"` // cloud repository id
	Keyring    chunk.Fingerprint `json:"-"`
	Ring       string            `json:"keyring"` // Keyring as text
	Point      ID                `json:"point"`
	Previous   ID                `json:"previous,omitempty"` // the machine's point before this one
	Machine    MachineID         `json:"machine"`
	Session    string            `json:"session"` // hexadecimal of chunk.SessionID
	Taken      time.Time         `json:"taken"`
	Kind       Kind              `json:"kind"`
	Key        uint32            `json:"key"` // number of the data key that sealed Private
	ChunkSize  int64             `json:"chunk_size"`
	FanOut     int               `json:"fan_out"`
	Disks      []Disk            `json:"disks"`
}

// Disk is the map of one disk. Its number is its place in Public.Disks, and
// Private.Disks describes it at the same place.
type Disk struct {
	SizeBytes int64    `json:"size"`
	Root      chunk.ID `json:"root"` // of the tree; the zero ID for a disk of zeroes
}

// Private is what only the tenant sees of a point.
type Private struct {
	Machine     string        `json:"machine"`  // name
	Platform    string        `json:"platform"` // plugin that read it
	Endpoint    string        `json:"endpoint"`
	Consistency string        `json:"consistency"` // what quiescing achieved
	Note        string        `json:"note,omitempty"`
	Spec        []byte        `json:"spec"` // JSON of the machine as the source described it
	Disks       []PrivateDisk `json:"disks"`
}

// PrivateDisk describes one disk to the tenant.
type PrivateDisk struct {
	ID   string `json:"id"` // the source's
	Name string `json:"name"`
	Mark []byte `json:"mark,omitempty"` // from which the next run asks for changes
}

// Geometry is the shape of the map of disk i.
func (p Public) Geometry(i int) Geometry {
	return Geometry{SizeBytes: p.Disks[i].SizeBytes, ChunkSize: p.ChunkSize, FanOut: p.FanOut}
}

func (p Public) validate() error {
	if p.Format != chunk.Format {
		return fmt.Errorf("manifest has format %d: this program reads format %d", p.Format, chunk.Format)
	}
	bad := func(what string) error { return fmt.Errorf("manifest: %s: %w", what, chunk.ErrDamaged) }
	for name, id := range map[string]string{"repository": p.Repository, "point": string(p.Point), "machine": string(p.Machine)} {
		if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
			return bad(fmt.Sprintf("%s %.80q is not a UUID", name, id))
		}
	}
	if p.Previous != "" {
		if parsed, err := uuid.Parse(string(p.Previous)); err != nil || parsed.String() != string(p.Previous) {
			return bad("previous point is not a UUID")
		}
	}
	if len(p.Session) != 2*len(chunk.SessionID{}) {
		return bad("session is not an id")
	}
	if p.Taken.IsZero() || p.Taken.Year() > 9999 {
		return bad("no time")
	}
	switch p.Kind {
	case KindFull, KindIncremental, KindCompare:
	default:
		return bad(fmt.Sprintf("kind %.40q", p.Kind))
	}
	if p.Key == 0 || len(p.Disks) == 0 || len(p.Disks) > MaxDisks {
		return bad(fmt.Sprintf("key %d, %d disks", p.Key, len(p.Disks)))
	}
	for i := range p.Disks {
		if err := p.Geometry(i).Validate(); err != nil {
			return fmt.Errorf("manifest: disk %d: %w: %w", i, err, chunk.ErrDamaged)
		}
		if p.Disks[i].SizeBytes == 0 && !p.Disks[i].Root.IsZero() {
			return bad("an empty disk has a map")
		}
	}
	return nil
}

var manifestMagic = [4]byte{'H', 'F', 'm', 'f'}

const (
	manifestHeader = 16
	macSize        = 32
	sumSize        = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrForged means that a manifest does not carry the tenant's MAC: somebody
// else made or changed it.
var ErrForged = errors.New("manifest is not authenticated by the keyring")

// Seal encodes the manifest and authenticates it. Layout, numbers
// little-endian:
//
//	 0  4  magic "HFmf"
//	 4  1  format, 1; three zero bytes
//	 8  4  length of the public part
//	12  4  length of the private part
//	16     public part, JSON
//	       private part: nonce (12), ciphertext, tag (16) of JSON
//	   32  MAC over all bytes before it
//	    4  CRC-32C of all bytes before it
//
// Format, Keyring, Ring and Key are filled in.
func (m Manifest) Seal(keys *chunk.Keyring) ([]byte, error) {
	m.Public.Format, m.Public.Key = chunk.Format, keys.KeyNumber()
	m.Public.Keyring = keys.Fingerprint()
	m.Public.Ring = m.Public.Keyring.String()
	m.Public.Taken = m.Public.Taken.UTC().Truncate(time.Microsecond)
	if len(m.Private.Disks) != len(m.Public.Disks) {
		return nil, fmt.Errorf("seal manifest of point %s: %d disks and %d descriptions", m.Public.Point, len(m.Public.Disks), len(m.Private.Disks))
	}
	if err := m.Public.validate(); err != nil {
		return nil, fmt.Errorf("seal manifest of point %s: %w", m.Public.Point, err)
	}
	public, err := json.Marshal(m.Public)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	private, err := json.Marshal(m.Private)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	sealed, err := keys.SealManifest(string(m.Public.Point), public, private)
	if err != nil {
		return nil, err
	}
	out := append([]byte(nil), manifestMagic[:]...)
	out = append(out, chunk.Format, 0, 0, 0)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(public)))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(sealed)))
	out = append(append(out, public...), sealed...)
	mac := keys.MAC(out)
	out = append(out, mac[:]...)
	out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
	if len(out) > MaxManifest {
		return nil, fmt.Errorf("seal manifest of point %s: %d bytes, at most %d", m.Public.Point, len(out), MaxManifest)
	}
	return out, nil
}

// split checks a manifest's frame, without keys.
func split(b []byte) (public, sealed []byte, err error) {
	bad := func(what string) ([]byte, []byte, error) {
		return nil, nil, fmt.Errorf("manifest: %s: %w", what, chunk.ErrDamaged)
	}
	if len(b) < manifestHeader+macSize+sumSize || len(b) > MaxManifest {
		return bad(fmt.Sprintf("%d bytes", len(b)))
	}
	if [4]byte(b[:4]) != manifestMagic || [3]byte(b[5:8]) != [3]byte{} {
		return bad("no magic")
	}
	if b[4] != chunk.Format {
		return nil, nil, chunk.UnknownFormat("manifest", b[4])
	}
	if binary.LittleEndian.Uint32(b[len(b)-sumSize:]) != crc32.Checksum(b[:len(b)-sumSize], castagnoli) {
		return bad("checksum")
	}
	np, ns := int64(binary.LittleEndian.Uint32(b[8:])), int64(binary.LittleEndian.Uint32(b[12:]))
	if manifestHeader+np+ns+macSize+sumSize != int64(len(b)) {
		return bad("lengths")
	}
	return b[manifestHeader : manifestHeader+np], b[manifestHeader+np : manifestHeader+np+ns], nil
}

// ParsePublic decodes what the provider may know of a manifest: it checks form
// and checksum, and cannot check the MAC.
func ParsePublic(b []byte) (Public, error) {
	public, _, err := split(b)
	if err != nil {
		return Public{}, err
	}
	dec := json.NewDecoder(bytes.NewReader(public))
	var p Public
	if err := dec.Decode(&p); err != nil {
		return Public{}, fmt.Errorf("manifest: %w: %w", err, chunk.ErrDamaged)
	}
	if dec.More() {
		return Public{}, fmt.Errorf("manifest: bytes after the public part: %w", chunk.ErrDamaged)
	}
	if p.Keyring, err = chunk.ParseFingerprint(p.Ring); err != nil {
		return Public{}, fmt.Errorf("manifest: %w: %w", err, chunk.ErrDamaged)
	}
	if err := p.validate(); err != nil {
		return Public{}, err
	}
	return p, nil
}

// Open checks the MAC and decodes the whole manifest.
func Open(b []byte, keys *chunk.Keyring) (Manifest, error) {
	public, err := ParsePublic(b)
	if err != nil {
		return Manifest{}, err
	}
	if public.Keyring != keys.Fingerprint() {
		return Manifest{}, fmt.Errorf("open manifest of point %s: sealed by keyring %s, have %s", public.Point, public.Keyring, keys.Fingerprint())
	}
	signed := len(b) - macSize - sumSize
	if !keys.CheckMAC(b[:signed], b[signed:signed+macSize]) {
		return Manifest{}, fmt.Errorf("open manifest of point %s: %w", public.Point, ErrForged)
	}
	open, sealed, err := split(b)
	if err != nil {
		return Manifest{}, err
	}
	private, err := keys.OpenManifest(public.Key, string(public.Point), open, sealed)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Public: public}
	if err := json.Unmarshal(private, &m.Private); err != nil {
		return Manifest{}, fmt.Errorf("open manifest of point %s: %w", public.Point, err)
	}
	if len(m.Private.Disks) != len(public.Disks) {
		return Manifest{}, fmt.Errorf("open manifest of point %s: %d disks and %d descriptions: %w", public.Point, len(public.Disks), len(m.Private.Disks), chunk.ErrDamaged)
	}
	return m, nil
}

// MissingError is a commit's refusal because ids that the point needs are not
// in the repository (any more). The agent sends them again from the snapshot,
// which it keeps until commit has succeeded, and commits again.
type MissingError struct {
	Chunks []chunk.ID // at most MaxMissing
	Pages  []chunk.ID
}

// MaxMissing bounds the ids of each kind that one refusal names.
const MaxMissing = 4096

func (e *MissingError) Error() string {
	return fmt.Sprintf("%d chunks and %d map pages of the point are not in the repository", len(e.Chunks), len(e.Pages))
}
