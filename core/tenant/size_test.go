package tenant

import (
	"math"
	"testing"
)

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 256 << 10: "256.0 KiB", 1<<20 - 1: "1.0 MiB", 1536 << 20: "1.5 GiB", 2 << 40: "2.0 TiB",
		1 << 60: "1.0 EiB", math.MaxInt64: "8.0 EiB", -(5 << 20): "-5.0 MiB",
	} {
		if got := SizeText(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
}
