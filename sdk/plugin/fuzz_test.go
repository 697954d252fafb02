package plugin

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// FuzzAnswers: what a plugin answers to the calls that have no target of their
// own is within the contract, or an error.
func FuzzAnswers(f *testing.F) {
	add := func(m proto.Message) {
		doc, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	add(toMachine(sdk.Machine{ID: "m", Disks: []sdk.Disk{{ID: "vda", SizeBytes: 1}}, NICs: []sdk.NIC{{MAC: "x"}}}))
	add(toAddress(sdk.Address{Network: "unix", Addr: "/x", Connections: 99, TLS: &sdk.AddressTLS{CA: []byte("x")}}))
	add(toReport(sdk.Report{Product: "p", Findings: []sdk.Finding{{Ability: "source", Reason: "r"}}}))
	add(toDraft(sdk.Draft{ID: "d", Disks: []sdk.DiskID{"vda"}}))
	add(&pluginv1.WatchResponse{})
	add(&pluginv1.CreateReplicaResponse{Replica: toReplica(goldenReplica), Points: []*pluginv1.Point{toPoint(goldenPoint)}})
	add(toInstance(goldenInstance))
	add(toNetwork(goldenNetwork))
	add(&pluginv1.GuestInfoResponse{Hostname: "h", Interfaces: []*pluginv1.GuestInterface{{Name: "eth0", Addresses: []string{"10.0.0.1/8", "x"}}}})
	f.Fuzz(func(t *testing.T, doc []byte) {
		var machine pluginv1.Machine
		if proto.Unmarshal(doc, &machine) == nil {
			if m := fromMachine(&machine); checkMachine(m) == nil {
				if m.ID == "" || len(m.Disks) > maxDisks || m.MemoryBytes < 0 || m.CPUs < 0 {
					t.Errorf("machine %+v", m)
				}
			}
		}
		var address pluginv1.Address
		if proto.Unmarshal(doc, &address) == nil {
			if a, err := fromAddress(&address); err == nil && (a.Connections < 0 || a.Connections > maxConnections || len(a.Addr) > maxID) {
				t.Errorf("address %+v", a)
			}
		}
		var report pluginv1.ProbeResponse
		if proto.Unmarshal(doc, &report) == nil {
			if r, err := fromReport(&report); err == nil && len(r.Findings) > maxFindings {
				t.Errorf("%d findings", len(r.Findings))
			}
		}
		var draft pluginv1.Draft
		if proto.Unmarshal(doc, &draft) == nil {
			fromDraft(&draft)
		}
		var made pluginv1.CreateReplicaResponse
		if proto.Unmarshal(doc, &made) == nil {
			replica := fromReplica(made.GetReplica())
			for _, point := range made.GetPoints() {
				replica.Points = append(replica.Points, fromPoint(point))
			}
			if checkReplica(replica, "") == nil && (replica.ID == "" || replica.MaxPoints < 0 || len(replica.Label) > sdk.MaxLabel) {
				t.Errorf("replica %+v", replica)
			}
		}
		var instance pluginv1.Instance
		if proto.Unmarshal(doc, &instance) == nil {
			if i := fromInstance(&instance); checkInstance(i, "") == nil && (i.ID == "" || i.Replica == "" || i.WrittenBytes < 0) {
				t.Errorf("instance %+v", i)
			}
		}
		var network pluginv1.Network
		if proto.Unmarshal(doc, &network) == nil {
			if n, err := fromNetwork(&network); err == nil && (n.Name == "" || n.VLAN < 0 || n.VLAN > maxVLAN) {
				t.Errorf("network %+v", n)
			}
		}
		var guest pluginv1.GuestInfoResponse
		if proto.Unmarshal(doc, &guest) == nil {
			if info, err := fromGuestInfo(&guest); err == nil && len(info.Interfaces) > maxInterfaces {
				t.Errorf("%d interfaces", len(info.Interfaces))
			}
		}
		var change pluginv1.WatchResponse
		if proto.Unmarshal(doc, &change) == nil {
			_, _ = fromChange(&change)
		}
	})
}

// FuzzDescription: a program says what it is before it is trusted with anything.
func FuzzDescription(f *testing.F) {
	f.Add([]byte(plain))
	f.Add([]byte(`{"name":"x","version":"1","protocol":1,"config":{"fields":[{"name":"a","type":"list"}]}}`))
	f.Add([]byte(`{"name":"x","version":"1","protocol":1,"config":{"fields":[{"name":"a","type":"object","fields":[{"name":"b"}]}]}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		d, err := parseDescription(doc)
		if err != nil {
			return
		}
		if d.Name == "" || len(d.Name) > 64 || d.Protocol < 1 {
			t.Errorf("description %+v", d)
		}
		for _, settings := range []string{`{}`, `{"a":{"b":1}}`, `{"a":[1,2]}`} { // a schema of any form is used as one
			_ = d.Config.Validate(json.RawMessage(settings))
			_ = d.Config.Redact(json.RawMessage(settings))
		}
	})
}
