package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// maxLogLine is the longest line of a plugin's log that the host keeps; the
// stack of a panic fits.
const maxLogLine = 16 << 10

// cutMargin is how much more of a line is read, so that a secret that begins
// before the cut is hidden as a whole.
const cutMargin = 8 << 10

// Line is one line of a plugin's log as its host keeps it: free of secrets.
type Line struct {
	Time    time.Time
	Level   slog.Level
	Message string
	Attrs   []slog.Attr // by key
	// Dropped is how many lines were left out here because there were too many.
	Dropped int
}

type logKey struct{}

// Log is the logger of the call that ctx belongs to: it adds the name of the
// call and the id of its operation. Outside of a call it is slog.Default.
func Log(ctx context.Context) *slog.Logger {
	if log, ok := ctx.Value(logKey{}).(*slog.Logger); ok {
		return log
	}
	return slog.Default()
}

func withLog(ctx context.Context, log *slog.Logger, req any) context.Context {
	for _, l := range labelsOf(ctx) {
		log = log.With(l.name, l.value)
	}
	if r, ok := req.(interface{ GetOp() *pluginv1.Op }); ok && r.GetOp() != nil {
		log = log.With("op", r.GetOp().GetId())
		if space := r.GetOp().GetSpace(); space != "" {
			log = log.With("space", space)
		}
	}
	return context.WithValue(ctx, logKey{}, log)
}

func callName(fullMethod string) string {
	return fullMethod[strings.LastIndexByte(fullMethod, '/')+1:]
}

// pluginLog is the logger of a plugin process: JSON lines, which logLines
// reads at the host.
func pluginLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// secretText hides the secrets of a plugin's settings in whatever the plugin
// says.
type secretText struct {
	mutex    sync.RWMutex // guards replacer
	replacer *strings.Replacer
}

// minSecret is the shortest text that is hidden: hiding shorter ones would
// hide letters in ordinary words.
const minSecret = 4

func (s *secretText) set(secrets []string) {
	var pairs []string
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	for _, text := range secrets {
		if len(text) < minSecret {
			continue
		}
		pairs = append(pairs, text, Redacted)
		// As it looks inside a JSON string.
		if quoted, err := json.Marshal(text); err == nil {
			if inner := string(quoted[1 : len(quoted)-1]); inner != text {
				pairs = append(pairs, inner, Redacted)
			}
		}
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.replacer = strings.NewReplacer(pairs...)
}

func (s *secretText) hide(text string) string {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	if s.replacer == nil {
		return text
	}
	return s.replacer.Replace(text)
}

// logLines is a writer that takes what a plugin writes to stderr, or prints,
// and logs it at the host.
type logLines struct {
	log     *slog.Logger
	secrets *secretText
	level   slog.Level // of lines that are not JSON
	keep    func(Line) // gets every line too; nil: nobody does
	shared  *flow      // of all that one process says; nil: this writer has its own

	mutex sync.Mutex // guards the fields below
	own   *flow
	rest  []byte
}

// Write takes a piece of a plugin's output. It makes a plugin wait that writes
// faster than anybody reads.
func (l *logLines) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	n := len(p)
	l.flow().pass(n)
	for {
		line, after, whole := bytes.Cut(p, []byte{'\n'})
		l.rest = append(l.rest, line[:min(len(line), maxLogLine+cutMargin-len(l.rest))]...)
		if !whole {
			return n, nil
		}
		l.line(l.rest)
		l.rest, p = l.rest[:0], after
	}
}

// flow is called with mutex held.
func (l *logLines) flow() *flow {
	if l.shared != nil {
		return l.shared
	}
	if l.own == nil {
		l.own = newFlow(l.left)
	}
	return l.own
}

// left says that lines were left out.
func (l *logLines) left(dropped int) {
	l.emit(Line{Level: slog.LevelWarn, Message: "the plugin logs too much; lines were left out", Dropped: dropped,
		Attrs: []slog.Attr{slog.Int("dropped", dropped)}})
}

func (l *logLines) line(line []byte) {
	if line = bytes.TrimSpace(line); len(line) == 0 || !l.flow().take() {
		return
	}
	l.emit(l.parse(clip(l.secrets.hide(string(line)), maxLogLine)))
}

func (l *logLines) emit(line Line) {
	line.Time = time.Now()
	if l.keep != nil {
		l.keep(line)
	}
	l.log.LogAttrs(context.Background(), line.Level, line.Message, line.Attrs...)
}

// parse reads a line, which may be one of slog's JSON or anything else.
func (l *logLines) parse(text string) Line {
	entry := map[string]any{}
	if json.Unmarshal([]byte(text), &entry) != nil {
		return Line{Level: l.level, Message: text}
	}
	line := Line{Level: l.level}
	if name, ok := entry["level"].(string); ok {
		if line.Level.UnmarshalText([]byte(name)) != nil {
			line.Level = l.level
		}
	}
	line.Message, _ = entry["msg"].(string)
	delete(entry, "msg")
	delete(entry, "level")
	delete(entry, "time")
	for key, value := range entry {
		if slices.Contains(hostKeys, key) {
			key = "plugin_" + key
		}
		line.Attrs = append(line.Attrs, slog.Any(key, value))
	}
	slices.SortFunc(line.Attrs, func(a, b slog.Attr) int { return strings.Compare(a.Key, b.Key) })
	return line
}

// hostKeys are attributes that the host adds. A plugin that uses them cannot
// pass for another.
var hostKeys = []string{"plugin", "endpoint", "pid", "dropped"}
