package host

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// Bounds of what is kept of a plugin's log.
const (
	maxLogLines = 2000
	maxLogBytes = 2 << 20
)

// LogLine is one line of a plugin's log.
type LogLine struct {
	// Sequence grows by one from line to line, so that a reader knows what it
	// has missed.
	Sequence uint64         `json:"sequence"`
	Time     time.Time      `json:"time"`
	Level    string         `json:"level" enum:"debug,info,warn,error"`
	Plugin   string         `json:"plugin"`
	Endpoint string         `json:"endpoint,omitempty"`
	From     string         `json:"from" enum:"plugin,host" doc:"Who says so: the plugin, or Holdfast about it"`
	Message  string         `json:"message"`
	Fields   map[string]any `json:"fields,omitempty" doc:"Such as call, op, tenant and run"`
}

// size is about what a line takes in memory.
func (l LogLine) size() int {
	n := 200 + len(l.Message) + len(l.Endpoint)
	for key, value := range l.Fields {
		n += 50 + len(key) + len(fmt.Sprint(value))
	}
	return n
}

// record keeps the newest lines of one plugin.
type record struct {
	mutex sync.Mutex // guards the fields below
	next  uint64     // the sequence of the next line
	lines []LogLine
	bytes int
	news  chan struct{} // closed at the next line; nil if nobody waits
}

func (r *record) add(l LogLine) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.next++
	l.Sequence = r.next
	r.lines = append(r.lines, l)
	r.bytes += l.size()
	for len(r.lines) > maxLogLines || r.bytes > maxLogBytes && len(r.lines) > 1 {
		r.bytes -= r.lines[0].size()
		r.lines = r.lines[1:]
	}
	if r.news != nil {
		close(r.news)
		r.news = nil
	}
}

// after gives up to limit lines after a sequence, the newest of them if there
// are more, and a channel that is closed when there is another one.
func (r *record) after(sequence uint64, limit int) ([]LogLine, <-chan struct{}) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.news == nil {
		r.news = make(chan struct{})
	}
	first := max(len(r.lines)-limit, 0)
	if sequence > r.next {
		sequence = 0 // of another life of the host
	}
	for first < len(r.lines) && r.lines[first].Sequence <= sequence {
		first++
	}
	return append([]LogLine{}, r.lines[first:]...), r.news
}

// LogRequest says which lines of a log.
type LogRequest struct {
	Plugin   string
	Endpoint string // only of this one, by name; "" for all
	After    uint64 // only after this sequence
	Limit    int    // the newest so many; 0 for all that are kept
}

// Logs are the lines that are kept of a plugin's log, the oldest first.
func (h *Host) Logs(r LogRequest) []LogLine {
	lines, _ := h.newLogs(r)
	return lines
}

func (h *Host) newLogs(r LogRequest) ([]LogLine, <-chan struct{}) {
	if r.Limit <= 0 {
		r.Limit = maxLogLines
	}
	lines, news := h.record(r.Plugin).after(r.After, maxLogLines)
	if r.Endpoint != "" {
		kept := lines[:0]
		for _, l := range lines {
			if strings.EqualFold(l.Endpoint, r.Endpoint) {
				kept = append(kept, l)
			}
		}
		lines = kept
	}
	return lines[max(len(lines)-r.Limit, 0):], news
}

// FollowLogs calls notice with each line that there is and that comes, until
// ctx or the host ends or notice fails. A reader that is too slow misses lines.
func (h *Host) FollowLogs(ctx context.Context, r LogRequest, notice func(LogLine) error) error {
	for {
		lines, news := h.newLogs(r)
		for _, l := range lines {
			if err := notice(l); err != nil {
				return err
			}
			r.After = l.Sequence
		}
		r.Limit = 0
		select {
		case <-news:
		case <-h.closing.Done():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// OnBehalf says for whom calls are made: a plugin's log lines, and what is noted
// of calls that fail, then name the tenant and the run.
func OnBehalf(ctx context.Context, tenant, run string) context.Context {
	return plugin.WithLabel(plugin.WithLabel(ctx, "tenant", tenant), "run", run)
}

// keepLine keeps a line of a plugin's own log.
func (h *Host) keepLine(e Endpoint, line plugin.Line) {
	if line.Dropped > 0 {
		h.meter(e.Plugin).count(func(m *PluginMetrics) { m.DroppedLines += int64(line.Dropped) })
	}
	from := "plugin"
	if line.Dropped > 0 {
		from = "host"
	}
	kept := LogLine{Time: line.Time.UTC(), Level: levelName(line.Level), Plugin: e.Plugin, Endpoint: e.Name, From: from, Message: line.Message}
	for _, a := range line.Attrs {
		if kept.Fields == nil {
			kept.Fields = make(map[string]any, len(line.Attrs))
		}
		kept.Fields[a.Key] = a.Value.Any()
	}
	h.record(e.Plugin).add(kept)
}

// note logs something about a plugin, and keeps it beside what the plugin says
// of itself.
func (h *Host) note(level slog.Level, e Endpoint, message string, fields ...slog.Attr) {
	h.remember(level, e, message, fields...)
	attrs := []slog.Attr{slog.String("plugin", e.Plugin)}
	if e.Name != "" {
		attrs = append(attrs, slog.String("endpoint", e.Name))
	}
	h.log.LogAttrs(context.Background(), level, message, append(attrs, fields...)...)
}

// remember keeps something about a plugin that is logged elsewhere, or that is
// of interest only here.
func (h *Host) remember(level slog.Level, e Endpoint, message string, fields ...slog.Attr) {
	kept := LogLine{Time: h.now().UTC(), Level: levelName(level), Plugin: e.Plugin, Endpoint: e.Name, From: "host", Message: message}
	for _, f := range fields {
		if kept.Fields == nil {
			kept.Fields = make(map[string]any, len(fields))
		}
		value := f.Value.Any()
		if err, ok := value.(error); ok {
			value = err.Error()
		}
		kept.Fields[f.Key] = value
	}
	h.record(e.Plugin).add(kept)
}

// levelName is the next of the four levels below.
func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}
