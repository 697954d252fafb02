package protocol1

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/testdata/protocol1/pb"
)

// maxLogLine is the longest line of a plugin's log that the host keeps.
const maxLogLine = 64 << 10

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

	mutex sync.Mutex // guards rest
	rest  []byte
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	n := len(p)
	for {
		line, after, whole := bytes.Cut(p, []byte{'\n'})
		l.rest = append(l.rest, line[:min(len(line), maxLogLine-len(l.rest))]...)
		if !whole {
			return n, nil
		}
		l.line(l.rest)
		l.rest, p = l.rest[:0], after
	}
}

func (l *logLines) line(line []byte) {
	if line = bytes.TrimSpace(line); len(line) == 0 {
		return
	}
	text := l.secrets.hide(string(line))
	entry := map[string]any{}
	if json.Unmarshal([]byte(text), &entry) != nil {
		l.log.Log(context.Background(), l.level, text)
		return
	}
	level := l.level
	if name, ok := entry["level"].(string); ok {
		if level.UnmarshalText([]byte(name)) != nil {
			level = l.level
		}
	}
	msg, _ := entry["msg"].(string)
	delete(entry, "msg")
	delete(entry, "level")
	delete(entry, "time")
	attrs := make([]slog.Attr, 0, len(entry))
	for key, value := range entry {
		attrs = append(attrs, slog.Any(key, value))
	}
	slices.SortFunc(attrs, func(a, b slog.Attr) int { return strings.Compare(a.Key, b.Key) })
	l.log.LogAttrs(context.Background(), level, msg, attrs...)
}
