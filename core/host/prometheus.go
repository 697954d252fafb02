package host

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// WriteMetrics writes what all plugins did as Prometheus text. Names are those
// of the exposition format, durations seconds, sizes bytes.
func (h *Host) WriteMetrics(ctx context.Context, w io.Writer) error {
	all := make(map[string]PluginHealth)
	for _, name := range h.known() {
		s, err := h.Status(ctx, name)
		if err != nil {
			return err
		}
		all[name] = s
	}
	t := &exposition{names: slices.Sorted(maps.Keys(all)), all: all}
	t.calls()
	t.totals()
	t.endpoints()
	_, err := io.WriteString(w, t.text.String())
	return err
}

// known are the plugins of which anything was counted.
func (h *Host) known() []string {
	h.kept.Lock()
	defer h.kept.Unlock()
	return slices.Sorted(maps.Keys(h.meters))
}

type exposition struct {
	names []string
	all   map[string]PluginHealth
	text  strings.Builder
}

func (t *exposition) head(name, kind, help string) {
	fmt.Fprintf(&t.text, "# HELP holdfast_plugin_%s %s\n# TYPE holdfast_plugin_%s %s\n", name, help, name, kind)
}

// sample writes one value; labels are pairs of name and value.
func (t *exposition) sample(name string, value float64, labels ...string) {
	fmt.Fprintf(&t.text, "holdfast_plugin_%s{", name)
	for i := 0; i < len(labels); i += 2 {
		if i > 0 {
			t.text.WriteByte(',')
		}
		fmt.Fprintf(&t.text, "%s=%s", labels[i], quoteLabel(labels[i+1]))
	}
	fmt.Fprintf(&t.text, "} %s\n", strconv.FormatFloat(value, 'g', -1, 64))
}

// quoteLabel quotes as the format does: a backslash before a backslash, a
// quotation mark and a line's end, and nothing else.
func quoteLabel(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(text) + `"`
}

func (t *exposition) eachCall(each func(plugin string, c CallMetrics)) {
	for _, name := range t.names {
		for _, c := range t.all[name].Metrics.Calls {
			each(name, c)
		}
	}
}

func (t *exposition) calls() {
	t.head("calls_in_flight", "gauge", "Calls that are being made.")
	t.eachCall(func(p string, c CallMetrics) {
		t.sample("calls_in_flight", float64(c.InFlight), "plugin", p, "method", c.Method)
	})
	t.head("call_errors_total", "counter", "Calls that failed, by whose fault.")
	t.eachCall(func(p string, c CallMetrics) {
		for _, fault := range slices.Sorted(maps.Keys(c.Errors)) {
			t.sample("call_errors_total", float64(c.Errors[fault]), "plugin", p, "method", c.Method, "fault", string(fault))
		}
	})
	t.head("calls_pending_total", "counter", "Calls that were answered: still working.")
	t.eachCall(func(p string, c CallMetrics) {
		t.sample("calls_pending_total", float64(c.Pending), "plugin", p, "method", c.Method)
	})
	t.head("call_duration_seconds", "histogram", "How long calls took.")
	t.eachCall(func(p string, c CallMetrics) {
		var sum int64
		for i, n := range c.Buckets {
			sum += n
			bound := "+Inf"
			if i < len(buckets) {
				bound = strconv.FormatFloat(buckets[i], 'g', -1, 64)
			}
			t.sample("call_duration_seconds_bucket", float64(sum), "plugin", p, "method", c.Method, "le", bound)
		}
		t.sample("call_duration_seconds_sum", c.Seconds, "plugin", p, "method", c.Method)
		t.sample("call_duration_seconds_count", float64(c.Calls), "plugin", p, "method", c.Method)
	})
}

func (t *exposition) totals() {
	for _, m := range []struct {
		name, kind, help string
		value            func(PluginMetrics) int64
	}{
		{"read_bytes_total", "counter", "Bytes read of disks.", func(m PluginMetrics) int64 { return m.ReadBytes }},
		{"written_bytes_total", "counter", "Bytes written to disks.", func(m PluginMetrics) int64 { return m.WrittenBytes }},
		{"open_disks", "gauge", "Disks that are open.", func(m PluginMetrics) int64 { return m.OpenDisks }},
		{"starts_total", "counter", "Processes that were started.", func(m PluginMetrics) int64 { return m.Starts }},
		{"restarts_total", "counter", "Processes that ended by themselves or hung.", func(m PluginMetrics) int64 { return m.Restarts }},
		{"failed_starts_total", "counter", "Starts that came to nothing.", func(m PluginMetrics) int64 { return m.FailedStarts }},
		{"breaches_total", "counter", "Answers that broke the contract.", func(m PluginMetrics) int64 { return m.Breaches }},
		{"dropped_log_lines_total", "counter", "Log lines that were left out.", func(m PluginMetrics) int64 { return m.DroppedLines }},
	} {
		t.head(m.name, m.kind, m.help)
		for _, name := range t.names {
			t.sample(m.name, float64(m.value(t.all[name].Metrics)), "plugin", name)
		}
	}
}

func (t *exposition) endpoints() {
	t.head("endpoint_state", "gauge", "1 for the state of a plugin at an endpoint.")
	for _, name := range t.names {
		for _, e := range t.all[name].Endpoints {
			t.sample("endpoint_state", 1, "plugin", name, "endpoint", e.Endpoint, "state", string(e.State), "version", e.Version)
		}
	}
}
