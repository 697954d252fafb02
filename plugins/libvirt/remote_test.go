package main

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/nbd"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// TestRemoteHost backs up and restores over TLS, control and disks, between two network namespaces.
func TestRemoteHost(t *testing.T) {
	testenv.NeedRoot(t)
	s := testSite(t)
	ctx := t.Context()
	secure := Config{
		URI: s.TLSURI, CA: string(s.PKI.CA), Cert: string(s.PKI.ClientCert), Key: string(s.PKI.ClientKey),
		ScratchDir: s.Scratch(), NBDTLSDir: s.NBDCertificates(), Instance: "test",
	}
	p := testPlatform(t, secure)
	g := testGuest(t, s, site.Spec{Name: "remote"})
	mustStart(t, g)
	m := find(t, p, "remote")
	before := leftovers(t, g)
	console(t, g, "note from afar && counter on")
	op := newOp()
	full := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID})
	disk := openDisk(t, p, full, "vda")
	address := disk.(sdk.Addressed).Address()
	disk.Close()
	if address.Network != "tcp" || address.TLS == nil {
		t.Fatalf("the address of a remote disk: %+v", address)
	}
	plaintext := address
	plaintext.TLS = nil
	if d, err := nbd.Open(ctx, plaintext); err == nil {
		d.Close()
		t.Error("QEMU serves the disk in plaintext")
	}
	nameless := address
	nameless.TLS = &sdk.AddressTLS{CA: address.TLS.CA, ServerName: address.TLS.ServerName}
	if d, err := nbd.Open(ctx, nameless); err == nil {
		d.Close()
		t.Error("QEMU serves the disk to clients without a certificate")
	}
	taken := copied{machine: full.Machine, images: map[sdk.DiskID][]byte{
		"vda": readDisk(t, p, full, "vda"), "vdb": readDisk(t, p, full, "vdb"),
	}}
	oneMoment(t, taken.images["vda"], taken.images["vdb"])
	end(t, p, op, full, true)
	op = newOp()
	next := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID, Since: full.Marks})
	for id, image := range taken.images {
		if read := applyChanges(t, p, next, id, image); read == 0 || read > 16<<20 {
			t.Errorf("%d bytes of %s changed", read, id)
		}
		if !bytes.Equal(image, readDisk(t, p, next, id)) {
			t.Errorf("%s: the changes are not complete", id)
		}
	}
	end(t, p, op, next, false)
	release(t, p, full)
	console(t, g, "counter off")
	nothingLeft(t, g, before)

	op = newOp()
	d, err := p.CreateDraft(ctx, op, sdk.DraftSpec{Machine: taken.machine})
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.OpenDraftDisk(ctx, op, d, "vda")
	if err != nil {
		t.Fatal(err)
	}
	target := w.(sdk.Addressed).Address()
	w.Close()
	if target.Network != "tcp" || target.TLS == nil {
		t.Fatalf("the address of a remote draft: %+v", target)
	}
	target.TLS = nil
	if d, err := nbd.Open(ctx, target); err == nil {
		d.Close()
		t.Error("QEMU takes writes in plaintext")
	}
	writeDraft(t, p, op, d, taken)
	id, err := p.CommitDraft(ctx, op, d)
	if err != nil {
		t.Fatal(err)
	}
	copied := takePoint(t, p, id)
	for disk, image := range taken.images {
		if !bytes.Equal(image, copied.images[disk]) {
			t.Errorf("%s of the restored machine differs", disk)
		}
	}
	if err := s.Guest("remote-restored").Remove(ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, g, before)
}

// TestPlaintextHasToBeAskedFor covers a remote host without certificates.
func TestPlaintextHasToBeAskedFor(t *testing.T) {
	testenv.NeedRoot(t)
	s := testSite(t)
	ctx := t.Context()
	plain := Config{URI: s.TCPURI, ScratchDir: s.Scratch(), Instance: "test"}
	p := testPlatform(t, plain)
	testGuest(t, s, site.Spec{Name: "plaintext"})
	m := find(t, p, "plaintext")
	if _, err := p.Snapshot(ctx, newOp(), sdk.SnapshotRequest{Machine: m.ID}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("a snapshot whose disks nobody could read safely: %v", err)
	}
	report, err := p.Probe(ctx, sdk.Subject{})
	if works, reason := report.Works(sdk.AbilitySource); err != nil || works || reason == "" {
		t.Errorf("probe: %+v, %v", report, err)
	}
	plain.InsecureNBD = true
	p = testPlatform(t, plain)
	op := newOp()
	snap := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID})
	disk := openDisk(t, p, snap, "vdb")
	defer disk.Close()
	if a := disk.(sdk.Addressed).Address(); a.Network != "tcp" || a.TLS != nil {
		t.Errorf("address: %+v", a)
	}
	if _, err := disk.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	end(t, p, op, snap, false)
}

// TestControlChecksCertificates refuses hosts and clients that the authority does not know.
func TestControlChecksCertificates(t *testing.T) {
	testenv.NeedRoot(t)
	s := testSite(t)
	good := Config{URI: s.TLSURI, CA: string(s.PKI.CA), Cert: string(s.PKI.ClientCert), Key: string(s.PKI.ClientKey)}
	other, err := site.NewPKI(s.Address)
	if err != nil {
		t.Fatal(err)
	}
	stranger := good
	stranger.Cert, stranger.Key = string(other.ClientCert), string(other.ClientKey)
	impostor := good
	impostor.CA = string(other.CA)
	for name, c := range map[string]Config{"client": stranger, "host": impostor} {
		for _, err := range testPlatform(t, c).Machines(t.Context()) {
			if !errors.Is(err, sdk.ErrUnavailable) {
				t.Errorf("an unknown %s: %v", name, err)
			}
		}
	}
	names := []string{}
	for m, err := range testPlatform(t, good).Machines(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		names = append(names, m.Name)
	}
	if slices.Contains(names, "") {
		t.Errorf("machines: %q", names)
	}
}
