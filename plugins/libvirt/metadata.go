package main

import (
	"context"
	"encoding/xml"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// runMetadata is on a machine only while its QEMU runs: libvirt forgets live metadata with the process.
type runMetadata struct {
	XMLName xml.Name `xml:"https://holdfast-dr.org/xmlns/libvirt/run/1.0 run"`
	Op      string   `xml:"op,attr"`
	Held    string   `xml:"held,attr,omitempty"`   // "yes": started paused by a snapshot, to be destroyed with it
	Stop    string   `xml:"stop,attr,omitempty"`   // when the plug is pulled: a time as RFC 3339
	Broken  string   `xml:"broken,attr,omitempty"` // the checkpoint of a snapshot that was ended for the guest's sake
	Why     string   `xml:"why,omitempty"`         // and the reason
	Server  string   `xml:"server,omitempty"`      // where a keeper listens: a jobServer as JSON
}

// held reports whether a snapshot of ours started the machine, which is off for everybody else.
func (r *runMetadata) held() bool { return r != nil && r.Held == "yes" }

// originMetadata is on a machine that a draft became.
type originMetadata struct {
	XMLName xml.Name `xml:"https://holdfast-dr.org/xmlns/libvirt/origin/1.0 origin"`
	Draft   string   `xml:"draft,attr"`
	Op      string   `xml:"op,attr"`
	Epoch   uint64   `xml:"epoch,attr"`
}

// claimMetadata is on a machine that was started or stopped: the highest epoch under which that was asked.
type claimMetadata struct {
	XMLName xml.Name `xml:"https://holdfast-dr.org/xmlns/libvirt/claim/1.0 claim"`
	Epoch   uint64   `xml:"epoch,attr"`
}

// draftMetadata is on the machine that holds a draft's disks.
type draftMetadata struct {
	XMLName xml.Name `xml:"https://holdfast-dr.org/xmlns/libvirt/draft/1.0 draft"`
	ID      string   `xml:"id,attr"`
	Op      string   `xml:"op,attr"`
	Epoch   uint64   `xml:"epoch,attr"`
	Pool    string   `xml:"pool,attr"`
	Spec    string   `xml:"spec"` // the request as JSON
	// Replaced are the images that a restore over a machine takes out of use, written down before it does.
	Replaced []string `xml:"replaced"`
}

// setMetadata writes one of the elements above; nil removes it.
func (p *platform) setMetadata(ctx context.Context, dom libvirt.Domain, uri string, value any, where libvirt.DomainModificationImpact) error {
	text, key := libvirt.OptString{}, libvirt.OptString{}
	if value != nil {
		encoded, err := xml.Marshal(value)
		if err != nil {
			return sdk.Errorf(nil, sdk.FaultPlugin, "encode metadata: %v", err)
		}
		text, key = libvirt.OptString{string(encoded)}, libvirt.OptString{metadataKey}
	}
	err := do(ctx, p.control, func(lv *libvirt.Libvirt) error {
		return lv.DomainSetMetadata(dom, int32(libvirt.DomainMetadataElement), text, key, libvirt.OptString{uri}, where)
	})
	if value == nil && is(err, libvirt.ErrNoDomainMetadata) {
		return nil
	}
	return err
}

// runOf reads the live metadata of a machine; nil if there is none, as on every machine that is off. It is read from the
// whole description, since the call for metadata returns it without its namespace.
func (p *platform) runOf(ctx context.Context, dom libvirt.Domain) (*runMetadata, error) {
	d, _, err := p.describe(ctx, dom, liveXML)
	return d.Metadata.Run, err
}
