package tenant

import "fmt"

// SizeText is a size for people, in powers of two, as contracts have them.
// Programs get the exact number.
func SizeText(n int64) string {
	if n < 0 {
		return "-" + SizeText(-n)
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), "KMGTPE"
	i := -1
	for f >= 1023.95 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
