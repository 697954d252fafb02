// Package site starts private libvirt hosts on this machine, for tests and for the demo.
//
// A site is a libvirtd with a directory of its own that holds its sockets, configuration, storage pools and logs. As root
// it is a system libvirtd in its own mount, process and network namespaces: what it mounts, starts and configures is
// invisible outside and cannot outlive it. Without root it is a session libvirtd in its own process namespace where the
// kernel allows one. Everything ends when the program that started the site ends, however that happens; only Detach lets
// a site live on, for the demo, until Close or `site down`.
//
// The program that imports this package is started once more as the first process of the site: see boot.go. Only one
// program at a time has sites, the others wait: a machine that runs every package's guests at once proves nothing but its
// own slowness.
package site
