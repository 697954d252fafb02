package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
)

// siteEnd is the name of a link inside the site.
const siteEnd = "uplink"

// freeLink picks addresses that nothing here uses: one of 256 small networks in 10.213.0.0/16.
func freeLink() (*link, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	used := make(map[string]bool)
	for _, a := range addrs {
		used[a.String()] = true
	}
	for n := range 256 {
		l := &link{
			Name: "hf-site" + strconv.Itoa(n),
			Here: fmt.Sprintf("10.213.%d.1", n),
			Site: fmt.Sprintf("10.213.%d.2", n),
		}
		if !used[l.Here+"/30"] {
			return l, nil
		}
	}
	return nil, errors.New("all networks for sites are in use")
}

// plugIn lays the cable. The kernel removes it with the namespace of the site.
func plugIn(ctx context.Context, l *link, boot int) error {
	for _, command := range []string{
		fmt.Sprintf("link add %s type veth peer name %s netns %d", l.Name, siteEnd, boot),
		fmt.Sprintf("addr add %s/30 dev %s", l.Here, l.Name),
		fmt.Sprintf("link set %s up", l.Name),
	} {
		if err := runIP(ctx, strings.Fields(command)...); err != nil {
			return err
		}
	}
	return nil
}

func runIP(ctx context.Context, args ...string) error {
	path, err := tool("ip")
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
