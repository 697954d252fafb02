package chunk

import "slices"

// grow returns dst with room for n more bytes and that length.
func grow(dst []byte, n int) []byte {
	return slices.Grow(dst, n)[:len(dst)+n]
}
