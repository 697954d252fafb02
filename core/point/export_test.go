package point

import (
	"encoding/binary"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// FrameManifest is a manifest of any two parts, as far as its MAC or with it,
// without its checksum.
func FrameManifest(public, sealed, mac []byte) []byte {
	out := append([]byte(nil), manifestMagic[:]...)
	out = append(out, chunk.Format, 0, 0, 0)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(public)))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(sealed)))
	out = append(append(out, public...), sealed...)
	return append(out, mac...)
}
