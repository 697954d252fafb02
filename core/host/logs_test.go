package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

func TestRecordKeepsTheNewest(t *testing.T) {
	var r record
	for n := range maxLogLines + 10 {
		r.add(LogLine{Message: fmt.Sprint(n)})
	}
	lines, _ := r.after(0, maxLogLines)
	if len(lines) != maxLogLines || lines[0].Message != "10" || lines[0].Sequence != 11 {
		t.Errorf("%d lines from %+v", len(lines), lines[0])
	}
	lines, _ = r.after(maxLogLines+5, 100)
	if len(lines) != 5 || lines[0].Sequence != maxLogLines+6 {
		t.Errorf("after a sequence: %+v", lines)
	}
	lines, _ = r.after(0, 3)
	if len(lines) != 3 || lines[2].Sequence != maxLogLines+10 {
		t.Errorf("the newest three: %+v", lines)
	}
	lines, _ = r.after(1<<60, 3) // of a host that was restarted
	if len(lines) != 3 {
		t.Errorf("after a sequence of the future: %+v", lines)
	}
	for range 400 {
		r.add(LogLine{Message: strings.Repeat("x", 16<<10)})
	}
	if lines, _ = r.after(0, maxLogLines); len(lines) > maxLogBytes/(16<<10) {
		t.Errorf("%d long lines are kept", len(lines))
	}
}

// TestLogsNameTenantRunAndOperation reads what is kept of calls that fail, and
// follows it.
func TestLogsNameTenantRunAndOperation(t *testing.T) {
	h := newHost(t, Options{})
	p := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	ctx := plugin.WithLabel(plugin.WithLabel(t.Context(), "tenant", "acme"), "run", "r-1")
	if err := p.Start(ctx, sdk.Op{ID: "op-7", Epoch: 1}, "nothing"); err == nil {
		t.Fatal("a machine that does not exist was started")
	}
	lines := h.Logs(LogRequest{Plugin: "sim", Endpoint: "LAB"})
	var failed *LogLine
	for i, l := range lines {
		if l.Message == "call failed" {
			failed = &lines[i]
		}
	}
	if failed == nil {
		t.Fatalf("no failed call among %+v", lines)
	}
	for key, want := range map[string]string{"tenant": "acme", "run": "r-1", "op": "op-7", "call": "Start"} {
		if failed.Fields[key] != want {
			t.Errorf("%s is %v, want %s", key, failed.Fields[key], want)
		}
	}
	if failed.From != "host" || failed.Endpoint != "lab" || failed.Level != "debug" || failed.Fields["fault"] == "" {
		t.Errorf("line %+v", failed)
	}
	if got := h.Logs(LogRequest{Plugin: "sim", Endpoint: "other"}); len(got) != 0 {
		t.Errorf("lines of another endpoint: %+v", got)
	}
	following, stop := context.WithCancel(t.Context())
	defer stop()
	heard := make(chan LogLine, 100)
	over := make(chan error, 1)
	go func() {
		over <- h.FollowLogs(following, LogRequest{Plugin: "sim", After: failed.Sequence}, func(l LogLine) error { heard <- l; return nil })
	}()
	for n := range 3 {
		h.note(slog.LevelInfo, Endpoint{Plugin: "sim", Name: "lab"}, fmt.Sprint("news ", n), slog.Any("err", errors.New("none")))
		for {
			if l := <-heard; strings.HasPrefix(l.Message, "news") {
				if l.Message != fmt.Sprint("news ", n) || l.Fields["err"] != "none" {
					t.Errorf("heard %+v", l)
				}
				break
			}
		}
	}
	stop()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("following ended with %v", err)
	}
}

// TestPluginLogLinesCarryLabels has a plugin log with the logger of its call.
func TestPluginLogLinesCarryLabels(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	p := open(t, s.Host, s.bad("say", ""))
	if _, err := p.Probe(plugin.WithLabel(t.Context(), "tenant", "acme"), sdk.Subject{}); err != nil {
		t.Fatal(err)
	}
	var line LogLine
	until(t, "the line", func() bool {
		for _, l := range s.Logs(LogRequest{Plugin: "hostile"}) {
			if l.From == "plugin" {
				line = l
			}
		}
		return line.Message != ""
	})
	want := LogLine{Sequence: line.Sequence, Time: line.Time, Level: "warn", Plugin: "hostile", Endpoint: "bad", From: "plugin", Message: "look here",
		Fields: map[string]any{"call": "Probe", "tenant": "acme", "disks": 3.0}}
	if diff := cmp.Diff(want, line); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

func TestMetricsCountCallsFaultsAndBytes(t *testing.T) {
	dir := t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, Options{})
	e := endpoint(t, map[string]any{"dir": dir})
	if err := h.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	p := open(t, h, e)
	snap, err := p.Snapshot(t.Context(), sdk.Op{ID: "s", Epoch: 1}, sdk.SnapshotRequest{Machine: m.ID})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.OpenDisk(t.Context(), snap, m.Disks[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if got := h.meter("sim").snapshot(); got.OpenDisks != 1 || got.ReadBytes != 1<<20 {
		t.Errorf("while it is open: %+v", got)
	}
	for range 2 { // twice is once
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for machine, err := range p.Machines(t.Context()) {
		if err != nil || machine.ID != m.ID {
			t.Fatal(machine, err)
		}
		break // a reader who has seen enough
	}
	if err := p.Start(t.Context(), sdk.Op{ID: "x", Epoch: 1}, "nothing"); !errors.Is(err, sdk.ErrNotFound) {
		t.Fatal(err)
	}
	kill(t, p)
	if _, err := p.Probe(t.Context(), sdk.Subject{}); err != nil {
		t.Fatal(err)
	}
	s, err := h.Status(t.Context(), "sim")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, c := range s.Metrics.Calls {
		var sum int64
		for _, n := range c.Buckets {
			sum += n
		}
		if sum != c.Calls {
			t.Errorf("%s: %d in buckets, %d calls", c.Method, sum, c.Calls)
		}
		got[c.Method] = fmt.Sprint(c.Calls, c.InFlight, c.Errors)
	}
	want := map[string]string{"Snapshot": "1 0 map[]", "OpenDisk": "1 0 map[]", "Machines": "1 0 map[]", "Start": "1 0 map[back-end:1]", "Probe": "1 0 map[]"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	s.Metrics.Calls = nil
	if diff := cmp.Diff(PluginMetrics{ReadBytes: 1 << 20, Starts: 2, Restarts: 1}, s.Metrics); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
}

func TestPrometheusText(t *testing.T) {
	h := newHost(t, Options{})
	m := h.meter("sim")
	m.begin("Probe")
	m.end("Probe", 30*time.Millisecond, "", false)
	m.begin("Probe")
	m.end("Probe", 31*time.Second, sdk.FaultPlugin, false)
	m.begin("Snapshot")
	m.end("Snapshot", time.Second, sdk.FaultBackend, true)
	m.begin("Snapshot")
	m.count(func(m *PluginMetrics) { m.ReadBytes = 1 << 40 })
	if err := h.Put(t.Context(), Endpoint{ID: "e", Name: "a \"b\"\\\n", Plugin: "sim", Settings: []byte(`{"dir":"/x"}`)}); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := h.WriteMetrics(t.Context(), &text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`# TYPE holdfast_plugin_call_duration_seconds histogram`,
		`holdfast_plugin_calls_in_flight{plugin="sim",method="Snapshot"} 1`,
		`holdfast_plugin_call_errors_total{plugin="sim",method="Probe",fault="plugin"} 1`,
		`holdfast_plugin_calls_pending_total{plugin="sim",method="Snapshot"} 1`,
		`holdfast_plugin_call_duration_seconds_bucket{plugin="sim",method="Probe",le="0.1"} 1`,
		`holdfast_plugin_call_duration_seconds_bucket{plugin="sim",method="Probe",le="30"} 1`,
		`holdfast_plugin_call_duration_seconds_bucket{plugin="sim",method="Probe",le="+Inf"} 2`,
		`holdfast_plugin_call_duration_seconds_sum{plugin="sim",method="Probe"} 31.03`,
		`holdfast_plugin_call_duration_seconds_count{plugin="sim",method="Probe"} 2`,
		`holdfast_plugin_read_bytes_total{plugin="sim"} 1.099511627776e+12`,
		`holdfast_plugin_endpoint_state{plugin="sim",endpoint="a \"b\"\\\n",state="idle",version=""} 1`,
	} {
		if !strings.Contains(text.String(), line+"\n") {
			t.Errorf("the text lacks %s", line)
		}
	}
	if t.Failed() {
		t.Log(text.String())
	}
}
