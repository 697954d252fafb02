package chunk_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// drawPlain draws content of every sort that a disk holds.
func drawPlain(t *rapid.T) []byte {
	b := make([]byte, rapid.OneOf(rapid.IntRange(1, 5000), rapid.IntRange(1, chunk.Size), rapid.Just(chunk.Size), rapid.Just(chunk.MaxSize)).Draw(t, "length"))
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	switch rapid.SampledFrom([]string{"noise", "text", "sparse", "mixed"}).Draw(t, "sort") {
	case "noise":
		fill(b, r, 255)
	case "text":
		fill(b, r, 15)
	case "sparse":
		b[r.IntN(len(b))] = 1
	case "mixed":
		fill(b[:len(b)/2], r, 255)
	}
	return b
}

func fill(b []byte, r *rand.Rand, mask byte) {
	for i := range b {
		b[i] = byte(r.Uint32()) & mask
	}
}

func TestWhatIsSealedOpens(t *testing.T) {
	keys := chunk.NewKeyring()
	sealer, opener, hasher := keys.NewSealer(chunk.SessionID{7}), keys.NewOpener(), keys.NewHasher()
	prefix := []byte("before")
	rapid.Check(t, func(t *rapid.T) {
		plain := drawPlain(t)
		kept := bytes.Clone(plain)
		id := hasher.ID(plain)
		if id != keys.ID(plain) {
			t.Fatal("a Hasher that is used again gives another id")
		}
		sealed, err := sealer.Append(bytes.Clone(prefix), id, plain)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(plain, kept) || !bytes.HasPrefix(sealed, prefix) {
			t.Fatal("Append changes what it was given")
		}
		r, rest, err := chunk.ParseRecord(append(sealed[len(prefix):], "after"...))
		if err != nil || string(rest) != "after" {
			t.Fatalf("ParseRecord leaves %q: %v", rest, err)
		}
		if r.ID != id || r.Session != (chunk.SessionID{7}) || r.Kind != chunk.KindData || int(r.PlainLength) != len(plain) || r.KeyNumber != 1 {
			t.Fatalf("record %+v", r)
		}
		if len(r.Body) > len(plain)+chunk.Overhead {
			t.Fatalf("%d bytes are sealed as %d", len(plain), len(r.Body))
		}
		opened, err := opener.Open(bytes.Clone(prefix), r)
		if err != nil || !bytes.Equal(opened[len(prefix):], plain) || !bytes.HasPrefix(opened, prefix) {
			t.Fatalf("Open: %d bytes, %v", len(opened), err)
		}
	})
}

// record seals content under an id that the caller chooses.
func record(t testing.TB, keys *chunk.Keyring, id chunk.ID, plain []byte) []byte {
	t.Helper()
	b, err := keys.NewSealer(chunk.SessionID{1}).Append(nil, id, plain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, b []byte) chunk.Record {
	t.Helper()
	r, _, err := chunk.ParseRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func text(n int) []byte {
	b := make([]byte, n)
	fill(b, rand.New(rand.NewPCG(1, 2)), 7)
	return b
}

func noise(n int) []byte {
	b := make([]byte, n)
	fill(b, rand.New(rand.NewPCG(1, 2)), 255)
	return b
}

func TestCompressionIsUsedWhereItHelps(t *testing.T) {
	keys := chunk.NewKeyring()
	for name, c := range map[string]struct {
		plain []byte
		want  chunk.Codec
	}{
		"text":        {text(chunk.Size), chunk.CodecZstd},
		"noise":       {noise(chunk.Size), chunk.CodecStored},
		"short noise": {noise(100), chunk.CodecStored},
		"short text":  {text(10000), chunk.CodecZstd},
	} {
		if r := parse(t, record(t, keys, keys.ID(c.plain), c.plain)); r.Codec != c.want {
			t.Errorf("%s: codec %d, want %d", name, r.Codec, c.want)
		}
	}
}

func TestSameContentIsSealedAfresh(t *testing.T) {
	keys, plain := chunk.NewKeyring(), text(5000)
	a, b := parse(t, record(t, keys, keys.ID(plain), plain)), parse(t, record(t, keys, keys.ID(plain), plain))
	if bytes.Equal(a.Body[:12], b.Body[:12]) || bytes.Equal(a.Body[12:], b.Body[12:]) {
		t.Error("two seals of one chunk share a nonce or a ciphertext")
	}
}

// TestEveryFlippedByteIsFound changes each byte of a record in turn. Without
// keys the checksum finds it; with its checksum made right again, as a forger
// would, the seal does, but for the session, which it does not cover.
func TestEveryFlippedByteIsFound(t *testing.T) {
	keys, plain := chunk.NewKeyring(), text(3000)
	sound := record(t, keys, keys.ID(plain), plain)
	opener := keys.NewOpener()
	for i := range sound {
		b := bytes.Clone(sound)
		b[i] ^= 0x10
		if _, _, err := chunk.ParseRecord(b); err == nil {
			t.Errorf("byte %d flipped: the checksum does not find it", i)
		}
		if i < chunk.HeaderSize {
			continue // with keys, header fields are tried one by one below
		}
		r := parse(t, sound)
		r.Body = b[chunk.HeaderSize:]
		if _, err := opener.Open(nil, r); !errors.Is(err, chunk.ErrDamaged) {
			t.Errorf("byte %d flipped: Open = %v", i, err)
		}
	}
	for name, forge := range map[string]func(*chunk.Record){
		"id":     func(r *chunk.Record) { r.ID[0] ^= 1 },
		"codec":  func(r *chunk.Record) { r.Codec = chunk.CodecStored },
		"length": func(r *chunk.Record) { r.PlainLength++ },
		"kind":   func(r *chunk.Record) { r.Kind = chunk.KindPage },
		"cut":    func(r *chunk.Record) { r.Body = r.Body[:chunk.Overhead] },
	} {
		r := parse(t, sound)
		forge(&r)
		if got, err := opener.Open([]byte("kept"), r); !errors.Is(err, chunk.ErrDamaged) || string(got) != "kept" {
			t.Errorf("%s forged: Open = %d bytes, %v", name, len(got), err)
		}
	}
}

func TestContentUnderAnotherIDIsFound(t *testing.T) {
	keys := chunk.NewKeyring()
	poison := parse(t, record(t, keys, keys.ID([]byte("good")), []byte("evil")))
	if got, err := keys.NewOpener().Open(nil, poison); !errors.Is(err, chunk.ErrDamaged) || len(got) != 0 {
		t.Errorf("Open = %q, %v: only the recomputed id can find this", got, err)
	}
}

func TestSealerRefusesImpossibleLengths(t *testing.T) {
	s := chunk.NewKeyring().NewSealer(chunk.SessionID{})
	for _, n := range []int{0, chunk.MaxSize + 1} {
		if b, err := s.Append([]byte("x"), chunk.ID{1}, make([]byte, n)); err == nil || string(b) != "x" {
			t.Errorf("%d bytes are sealed: %v", n, err)
		}
	}
}

func TestSealingDoesNotAllocateByTheChunk(t *testing.T) {
	keys, plain := chunk.NewKeyring(), text(chunk.Size)
	id := keys.ID(plain)
	sealer, opener := keys.NewSealer(chunk.SessionID{}), keys.NewOpener()
	dst, _ := sealer.Append(nil, id, plain)
	r := parse(t, bytes.Clone(dst))
	out, _ := opener.Open(nil, r)
	for name, work := range map[string]func(){
		"seal": func() { dst, _ = sealer.Append(dst[:0], id, plain) },
		"open": func() { out, _ = opener.Open(out[:0], r) },
	} {
		const times = 100
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range times {
			work()
		}
		runtime.ReadMemStats(&after)
		if got := (after.TotalAlloc - before.TotalAlloc) / times; got > chunk.Size/16 {
			t.Errorf("%s: %d bytes allocated for each chunk", name, got)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	for name, plain := range map[string][]byte{"text": text(chunk.Size), "noise": noise(chunk.Size)} {
		b.Run(name, func(b *testing.B) {
			keys := chunk.NewKeyring()
			sealer, hasher := keys.NewSealer(chunk.SessionID{}), keys.NewHasher()
			var dst []byte
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				dst, _ = sealer.Append(dst[:0], hasher.ID(plain), plain)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for name, plain := range map[string][]byte{"text": text(chunk.Size), "noise": noise(chunk.Size)} {
		b.Run(name, func(b *testing.B) {
			keys := chunk.NewKeyring()
			r := parse(b, record(b, keys, keys.ID(plain), plain))
			opener := keys.NewOpener()
			var dst []byte
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if dst, err = opener.Open(dst[:0], r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
