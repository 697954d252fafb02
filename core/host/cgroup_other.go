//go:build !linux

package host

// DelegatedCgroup is "": cgroups are Linux's.
func DelegatedCgroup() (dir, reason string, err error) { return "", "there are no cgroups here", nil }
