package chunk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/klauspost/compress/s2"
)

// Contexts of the keys derived from a data key (RFC 5869, HKDF-Expand with
// SHA-256); the id of the chunk or the point follows the context.
const (
	chunkContext    = "holdfast chunk 1"
	manifestContext = "holdfast manifest 1"
)

func (k *Keyring) derive(number uint32, context string, name []byte) (cipher.AEAD, error) {
	key, ok := k.data[number]
	if !ok {
		return nil, fmt.Errorf("keyring %s has no data key %d: it is older than the data", k.Fingerprint(), number)
	}
	derived, err := hkdf.Expand(sha256.New, key[:], context+string(name), keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// associated is what a chunk's seal is bound to: format, codec, plaintext
// length, key number, id. Never the place where it is kept.
func associated(r Record) [42]byte {
	var b [42]byte
	b[0], b[1] = Format, byte(r.Codec)
	binary.LittleEndian.PutUint32(b[2:], r.PlainLength)
	binary.LittleEndian.PutUint32(b[6:], r.KeyNumber)
	copy(b[10:], r.ID[:])
	return b
}

// Sealer turns plaintext into records. It reuses its buffers and belongs to one
// goroutine.
type Sealer struct {
	keys    *Keyring
	session SessionID
	enc     *encoder
	scratch []byte
	probe   []byte
}

// NewSealer returns a Sealer for a session.
func (k *Keyring) NewSealer(session SessionID) *Sealer {
	return &Sealer{keys: k, session: session, enc: newEncoder()}
}

// Append compresses and seals plain, whose id the caller has computed, and
// appends the record to dst. Every call draws a fresh nonce. plain has 1 to
// MaxSize bytes and is not kept.
func (s *Sealer) Append(dst []byte, id ID, plain []byte) ([]byte, error) {
	if len(plain) == 0 || len(plain) > MaxSize {
		return dst, fmt.Errorf("seal chunk of %d bytes: want 1 to %d", len(plain), MaxSize)
	}
	r := Record{Kind: KindData, Codec: CodecStored, PlainLength: uint32(len(plain)), KeyNumber: s.keys.last, Session: s.session, ID: id}
	body := plain
	if s.compressible(plain) {
		packed, err := s.enc.encode(s.scratch[:0], plain)
		if err != nil {
			return dst, fmt.Errorf("compress chunk: %w", err)
		}
		s.scratch = packed
		if len(packed) < len(plain) {
			r.Codec, body = CodecZstd, packed
		}
	}
	aead, err := s.keys.derive(r.KeyNumber, chunkContext, id[:])
	if err != nil {
		return dst, err
	}
	start := len(dst)
	dst = appendHeader(dst, r, len(body)+Overhead)
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails
	dst = append(dst, nonce[:]...)
	ad := associated(r)
	dst = aead.Seal(dst, nonce[:], body, ad[:])
	setChecksum(dst[start:])
	return dst, nil
}

// Incompressible data is found by looking at three samples, for full
// compression costs more than half of a backup's CPU time: the entropy of single
// bytes finds what the codec's entropy coder can use, such as text in base64, and
// where it is high, which costs a tenth of the rest, a cheap codec finds
// repetition.
const (
	probeSize   = 8 << 10
	probeCount  = 3
	probeRatio  = 0.97
	probeBits   = 7.6 // of 8: below, the codec's entropy coder saves 5 % or more
	probeSample = probeCount * probeSize
)

func (s *Sealer) compressible(plain []byte) bool {
	if len(plain) < 2*probeCount*probeSize {
		return true
	}
	step := (len(plain) - probeSize) / (probeCount - 1)
	var counts histogram
	for i := range probeCount {
		counts.add(plain[i*step : i*step+probeSize])
	}
	if counts.entropy(probeSample) < probeBits {
		return true
	}
	if s.probe == nil {
		s.probe = make([]byte, s2.MaxEncodedLen(probeSize))
	}
	packed := 0
	for i := range probeCount {
		packed += len(s2.Encode(s.probe, plain[i*step:i*step+probeSize]))
	}
	return float64(packed) < probeRatio*probeSample
}

// histogram counts bytes. Neighbours are counted apart, so that a run of equal
// ones does not wait for itself.
type histogram [4][256]uint32

// add counts the bytes of b, whose length is a multiple of four.
func (h *histogram) add(b []byte) {
	for ; len(b) >= 4; b = b[4:] {
		h[0][b[0]]++
		h[1][b[1]]++
		h[2][b[2]]++
		h[3][b[3]]++
	}
}

// entropy is the mean information of one of n bytes, in bits.
func (h *histogram) entropy(n float64) (bits float64) {
	for i := range h[0] {
		if c := h[0][i] + h[1][i] + h[2][i] + h[3][i]; c > 0 {
			p := float64(c) / n
			bits -= p * math.Log2(p)
		}
	}
	return bits
}

// Opener turns records back into plaintext. It belongs to one goroutine.
type Opener struct {
	keys    *Keyring
	hasher  *Hasher
	dec     *decoder
	scratch []byte
}

// NewOpener returns an Opener of the keyring.
func (k *Keyring) NewOpener() *Opener {
	return &Opener{keys: k, hasher: k.NewHasher(), dec: newDecoder()}
}

// Open appends the plaintext of a data record to dst. The tag is checked, the
// decompressed length is bounded by the record's, and the id is recomputed, so
// that a chunk sealed under a good id with other content is found. Errors wrap
// ErrDamaged, but for a key that the ring does not have.
func (o *Opener) Open(dst []byte, r Record) ([]byte, error) {
	if r.Kind != KindData || len(r.Body) <= Overhead || r.PlainLength == 0 || r.PlainLength > MaxSize {
		return dst, fmt.Errorf("open record %s: not a chunk of data: %w", r.ID, ErrDamaged)
	}
	aead, err := o.keys.derive(r.KeyNumber, chunkContext, r.ID[:])
	if err != nil {
		return dst, fmt.Errorf("open chunk %s: %w", r.ID, err)
	}
	ad := associated(r)
	start := len(dst)
	into := dst
	if r.Codec == CodecZstd {
		into = o.scratch[:0]
	}
	opened, err := aead.Open(into, r.Body[:nonceSize], r.Body[nonceSize:], ad[:])
	if err != nil { // opened is nil then
		return dst, fmt.Errorf("open chunk %s: seal is broken: %w", r.ID, ErrDamaged)
	}
	if r.Codec == CodecZstd {
		o.scratch = opened
	} else {
		dst = opened
	}
	if r.Codec == CodecZstd {
		if dst, err = o.dec.decode(dst, o.scratch, int(r.PlainLength)); err != nil {
			return dst[:start], fmt.Errorf("decompress chunk %s: %w: %w", r.ID, err, ErrDamaged)
		}
	}
	if len(dst)-start != int(r.PlainLength) {
		return dst[:start], fmt.Errorf("open chunk %s: %d bytes, record says %d: %w", r.ID, len(dst)-start, r.PlainLength, ErrDamaged)
	}
	if got := o.hasher.ID(dst[start:]); got != r.ID {
		return dst[:start], fmt.Errorf("open chunk %s: content has id %s: %w", r.ID, got, ErrDamaged)
	}
	return dst, nil
}

// SealManifest seals the private part of a manifest, bound to its public part.
func (k *Keyring) SealManifest(point string, public, private []byte) ([]byte, error) {
	aead, err := k.derive(k.last, manifestContext, []byte(point))
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceSize, nonceSize+len(private)+tagSize)
	_, _ = rand.Read(nonce) // never fails
	return aead.Seal(nonce, nonce, private, public), nil
}

// OpenManifest opens what SealManifest sealed under the numbered key.
func (k *Keyring) OpenManifest(number uint32, point string, public, sealed []byte) ([]byte, error) {
	aead, err := k.derive(number, manifestContext, []byte(point))
	if err != nil {
		return nil, fmt.Errorf("open manifest of point %s: %w", point, err)
	}
	if len(sealed) < Overhead {
		return nil, fmt.Errorf("open manifest of point %s: private part of %d bytes: %w", point, len(sealed), ErrDamaged)
	}
	private, err := aead.Open(nil, sealed[:nonceSize], sealed[nonceSize:], public)
	if err != nil {
		return nil, fmt.Errorf("open manifest of point %s: seal is broken: %w", point, ErrDamaged)
	}
	return private, nil
}
