//go:build !cgo

package chunk

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Codecs is the implementation of zstd in this build.
const Codecs = "pure Go zstd"

type encoder struct{ enc *zstd.Encoder }

func newEncoder() *encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(MaxSize),
		zstd.WithAllLitEntropyCompression(true)) // as libzstd does: what does not repeat may still be text
	if err != nil {
		panic(err) // only for impossible options
	}
	return &encoder{enc: enc}
}

func (e *encoder) encode(dst, src []byte) ([]byte, error) { return e.enc.EncodeAll(src, dst), nil }

type decoder struct{ dec *zstd.Decoder }

func newDecoder() *decoder {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*MaxSize))
	if err != nil {
		panic(err) // only for impossible options
	}
	return &decoder{dec: dec}
}

// decode appends exactly size bytes to dst, or fails.
func (d *decoder) decode(dst, src []byte, size int) ([]byte, error) {
	start := len(dst)
	dst = grow(dst, size)[:start]
	out, err := d.dec.DecodeAll(src, dst)
	if err != nil {
		return dst[:start], err
	}
	if len(out)-start != size {
		return dst[:start], fmt.Errorf("%d bytes, want %d", len(out)-start, size)
	}
	return out, nil
}
