package scenario

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// hostile is an agent of the tenant in the hands of an attacker: it is enrolled,
// it has the tenant's keys, and it speaks the wire as it likes.
type hostile struct {
	*lab
	id         string
	keys       *chunk.Keyring
	repository *gateway.RemoteRepository
}

func (l *lab) hostile() *hostile {
	l.t.Helper()
	ctx := l.t.Context()
	var token struct{ Token string }
	l.must(l.ProviderJSON(ctx, &token, "token", "create", "--tenant", "demo", "--site", "berlin"))
	pin, err := pki.ParseFingerprint(l.Fingerprint)
	l.must(err)
	key, err := pki.NewAgentKey()
	l.must(err)
	request, err := pki.NewRequest(key)
	l.must(err)
	dial := func(o gateway.Options) *gateway.Client {
		o.Address, o.Version, o.Log, o.Patience = l.Address, "test", slog.New(slog.DiscardHandler), time.Minute
		o.Trust = pki.Trust{Pins: []pki.Fingerprint{pin}}
		c, err := gateway.NewClient(o)
		l.must(err)
		l.t.Cleanup(c.Close)
		return c
	}
	credentials, err := dial(gateway.Options{}).Enrol(ctx, token.Token, request)
	l.must(err)
	certificate := &tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode([]byte(credentials.Certificate)); block != nil; block, rest = pem.Decode(rest) {
		certificate.Certificate = append(certificate.Certificate, block.Bytes)
	}
	c := dial(gateway.Options{Certificate: func() (*tls.Certificate, error) { return certificate, nil }})
	b, err := os.ReadFile(l.kit)
	l.must(err)
	kit, err := agent.DecodeKit(b, "")
	l.must(err)
	h := &hostile{lab: l, id: credentials.AgentID}
	h.keys, err = kit.Open()
	l.must(err)
	h.repository = c.Repository(l.clouds("--tenant", "demo")[0].ID)
	return h
}

// poison brings garbage under the ids of a machine's chunks, as whoever copies
// from the machine would name them, and goes.
func (h *hostile) poison(m sdk.Machine, disk int, off, n int64) (session string) {
	h.t.Helper()
	ctx := h.t.Context()
	s, err := h.repository.Begin(ctx, point.MachineID(uuid.NewString()), "")
	h.must(err)
	sealer := h.keys.NewSealer(s.ID())
	var batch []byte
	for at := off; at < off+n; at += chunk.Size {
		plain := make([]byte, chunk.Size)
		h.must(h.hv.ReadDisk(m.ID, m.Disks[disk].ID, at, plain))
		batch, err = sealer.Append(batch, h.keys.ID(plain), bytes.Repeat([]byte("garbage!"), chunk.Size/8))
		h.must(err)
	}
	h.must(s.Put(ctx, batch))
	h.must(s.Abort(ctx))
	id := s.ID()
	return hex.EncodeToString(id[:])
}

// serverRun starts a run of the provider and decodes what it answers.
func (l *lab) serverRun(into any, args ...string) run {
	l.t.Helper()
	var r struct {
		run
		Result json.RawMessage
	}
	l.must(l.ProviderJSON(l.t.Context(), &r, args...))
	l.must(json.Unmarshal(r.Result, into))
	return r.run
}

// Garbage that a hostile agent with the tenant's keys brings under good ids gets
// into the point of an honest one. The sample of that very backup finds it and
// names who brought it; once that is distrusted the next backup brings again
// what was lost, also for the point before, and everything is clean with keys.
func TestDistrustHealsWhatAHostileAgentBrought(t *testing.T) {
	l := newLab(t, stack.Options{})
	web := l.machine("web", 16*mib)
	l.noise(web, 0, 0, 8*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--machine", "web")
	first := l.backup("nightly").Machines[0].Point
	before := l.hashes(web.ID)
	l.noise(web, 0, 2*mib, 2*mib, 2)
	h := l.hostile()
	session := h.poison(web, 0, 2*mib, 2*mib)

	rogue := &rogue{lab: l, m: web} // the alert is the same
	second := rogue.warns("brought by session " + session)
	rogue.refuses(second, "")
	after := l.hashes(web.ID)

	// The operator takes the agent's right to come back, and then distrusts it.
	l.provider("tenant", "revoke", h.id, "--tenant", "demo")
	var sessions []struct{ ID, Agent string }
	l.must(l.ProviderJSON(t.Context(), &sessions, "repository", "sessions", "backups", "--tenant", "demo", "--agent", h.id))
	if len(sessions) != 1 || sessions[0].ID != session || sessions[0].Agent != h.id {
		t.Errorf("sessions of the hostile agent: %+v, want %s", sessions, session)
	}
	var found struct {
		Changed  int      `json:"changed_sessions"`
		Brought  []string `json:"brought"`
		Doubtful []string `json:"doubtful"`
		Affected []string `json:"affected"`
	}
	r := l.serverRun(&found, "repository", "distrust", "backups", "--tenant", "demo", "--agent", h.id)
	if r.State != "warned" || found.Changed != 1 || !slices.Equal(found.Doubtful, []string{second}) || found.Affected != nil || found.Brought != nil {
		t.Errorf("distrust: %+v %+v, want point %s doubtful and no other", r, found, second)
	}
	if entries := l.provider("audit", "--tenant", "demo", "-o", "json"); !strings.Contains(entries, "repository.distrust") {
		t.Errorf("the audit log has nothing of it: %s", entries)
	}
	// Nothing is gone before there is another copy.
	l.provider("repository", "collect", "backups", "--tenant", "demo", "--wait")
	var v struct {
		Sound    bool
		Doubtful []string
		Affected []string
	}
	if l.serverRun(&v, "repository", "verify", "backups", "--tenant", "demo"); v.Sound || !slices.Equal(v.Doubtful, []string{second}) || v.Affected != nil {
		t.Errorf("verify: %+v, want point %s doubtful and no other", v, second)
	}

	healed := l.backup("nightly").Machines[0] // nothing has changed at the machine since
	if healed.StoredBytes < 2*mib {
		t.Errorf("the next backup sent %d bytes, want the 2 MiB that were lost", healed.StoredBytes)
	}
	l.wantPoints(web, map[string][]string{first: before, second: after, healed.Point: after})
	for _, id := range []string{first, second, healed.Point} {
		l.do("point", "verify", id, "--wait")
	}
	if l.serverRun(&v, "repository", "verify", "backups", "--tenant", "demo"); !v.Sound {
		t.Errorf("verify after the next backup: %+v", v)
	}
	l.provider("audit", "verify")
}
