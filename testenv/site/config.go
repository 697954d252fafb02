package site

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/holdfast-dr/holdfast/testenv"
)

// Ports of libvirt's listeners: its own defaults, free in the site's namespace.
const (
	tcpPort = 16509
	tlsPort = 16514
)

// configure writes libvirt's files.
func (s *Site) configure(o Options) error {
	daemon := []string{
		`auth_unix_rw = "none"`,
		`log_filters = "1:qemu.qemu_monitor_json 3:object 3:util"`,
		fmt.Sprintf(`log_outputs = "2:file:%s"`, s.path("log", "libvirtd.log")),
	}
	// No security driver, no cgroups, no mount namespaces of its own: the site is one already, and the tests look at the
	// disks from outside. Logs go to files, since there is no virtlogd.
	qemu := []string{
		`security_driver = "none"`,
		`cgroup_controllers = []`,
		`namespaces = []`,
		`stdio_handler = "file"`,
		`dynamic_ownership = 0`,
		`remember_owner = 0`,
	}
	if s.System {
		daemon = append(daemon, `unix_sock_group = "root"`)
		qemu = append(qemu, `user = "root"`, `group = "root"`)
	}
	if o.Remote {
		if err := s.PKI.write(s.path("pki")); err != nil {
			return err
		}
		daemon = append(daemon,
			`listen_tcp = 1`, `auth_tcp = "none"`, fmt.Sprintf(`tcp_port = "%d"`, tcpPort),
			`listen_tls = 1`, `auth_tls = "none"`, fmt.Sprintf(`tls_port = "%d"`, tlsPort),
			fmt.Sprintf(`listen_addr = "%s"`, s.Address),
			fmt.Sprintf(`ca_file = "%s"`, s.path("pki", "ca-cert.pem")),
			fmt.Sprintf(`cert_file = "%s"`, s.path("pki", "server-cert.pem")),
			fmt.Sprintf(`key_file = "%s"`, s.path("pki", "server-key.pem")))
		qemu = append(qemu,
			fmt.Sprintf(`backup_tls_x509_cert_dir = "%s"`, s.path("pki")),
			`backup_tls_x509_verify = 1`)
		s.TCPURI = fmt.Sprintf("qemu+tcp://%s:%d/system", s.Address, tcpPort)
		s.TLSURI = fmt.Sprintf("qemu+tls://%s:%d/system", s.Address, tlsPort)
	}
	qemuConf := s.path("etc", "qemu.conf")
	if !s.System {
		// A session libvirtd looks below XDG_CONFIG_HOME.
		qemuConf = s.path("etc", "libvirt", "qemu.conf")
		if err := os.MkdirAll(filepath.Dir(qemuConf), 0o700); err != nil {
			return err
		}
	}
	if err := writeLines(qemuConf, qemu); err != nil {
		return err
	}
	return writeLines(s.path("etc", "libvirtd.conf"), daemon)
}

func writeLines(path string, lines []string) error {
	return os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

// Asking QEMU for its capabilities takes libvirtd 8 s; it remembers the answers in its cache directory and checks by
// itself that they still hold. So a copy of the last site's cache is a fast start or, at worst, of no use.
func capabilitiesCache() string {
	return filepath.Join(testenv.CacheDir(), fmt.Sprintf("capabilities-%d", os.Geteuid()))
}

func loadCapabilities(cache string) { _ = copyTree(cache, capabilitiesCache()) }

func saveCapabilities(cache string) {
	kept := capabilitiesCache()
	if _, err := os.Stat(kept); err == nil {
		if out, err := exec.Command("diff", "-rq", cache, kept).CombinedOutput(); err == nil && len(out) == 0 {
			return
		}
	}
	fresh, err := os.MkdirTemp(filepath.Dir(kept), "capabilities-new-")
	if err != nil {
		return
	}
	if copyTree(fresh, cache) != nil || os.RemoveAll(kept) != nil || os.Rename(fresh, kept) != nil {
		os.RemoveAll(fresh)
	}
}

// copyTree keeps the times of the files: libvirt compares them.
func copyTree(to, from string) error {
	if _, err := os.Stat(from); err != nil {
		return err
	}
	return exec.Command("cp", "-a", from+"/.", to).Run()
}
