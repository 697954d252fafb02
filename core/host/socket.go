package host

import (
	"os"
	"slices"
	"syscall"

	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// mayUse reports whether a user may connect to a socket, by its mode.
func mayUse(info os.FileInfo, u *plugin.User) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	mode := info.Mode().Perm()
	switch {
	case u.UID == 0:
		return true
	case stat.Uid == u.UID:
		return mode&0o200 != 0
	case stat.Gid == u.GID || slices.Contains(u.Groups, stat.Gid):
		return mode&0o020 != 0
	}
	return mode&0o002 != 0
}
