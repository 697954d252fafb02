package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// keptLines are what a host would keep. What was left out is told from a
// goroutine of its own.
type keptLines struct {
	mutex sync.Mutex
	lines []Line
}

func (k *keptLines) add(l Line) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.lines = append(k.lines, l)
}

// take is what was kept since it was last called.
func (k *keptLines) take() []Line {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	lines := k.lines
	k.lines = nil
	return lines
}

// keeper is a logLines whose lines are kept.
func keeper(secrets ...string) (*logLines, *keptLines) {
	kept, hidden := new(keptLines), new(secretText)
	hidden.set(secrets)
	return &logLines{log: slog.New(slog.DiscardHandler), secrets: hidden, level: slog.LevelInfo, keep: kept.add}, kept
}

func TestTooManyLinesAreCountedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, kept := keeper()
		say := func(n int) {
			for i := range n {
				fmt.Fprintf(l, "line %d\n", i)
			}
		}
		say(lineBurst + 100)
		if n := len(kept.take()); n != lineBurst {
			t.Errorf("%d lines of a burst were kept, want %d", n, lineBurst)
		}
		<-time.After(leftEvery)
		synctest.Wait()
		told := kept.take()
		if len(told) != 1 {
			t.Fatalf("%d lines after the burst, want one", len(told))
		}
		if last := told[0]; last.Dropped != 100 || last.Level != slog.LevelWarn {
			t.Errorf("after the burst: %+v, want 100 dropped", last)
		}
		say(lineRate + 10)
		if n := len(kept.take()); n != lineRate {
			t.Errorf("%d lines a second later, want %d", n, lineRate)
		}
		<-time.After(time.Hour)
		synctest.Wait()
		kept.take()
		say(lineBurst)
		if n := len(kept.take()); n != lineBurst {
			t.Errorf("%d lines after an hour, want %d", n, lineBurst)
		}
	})
}

// A plugin that writes faster than the host reads waits.
func TestFloodWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := keeper()
		began := time.Now()
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 40 {
			if _, err := l.Write(chunk); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 40*(1<<20)/passRate*time.Second*8/10 {
			t.Errorf("40 MiB were read in %s", took)
		}
		if len(l.rest) > maxLogLine+cutMargin {
			t.Errorf("%d bytes of a line without end are kept", len(l.rest))
		}
	})
}

func TestLongLinesAreCutAfterSecretsAreHidden(t *testing.T) {
	secret := strings.Repeat("s3cret", 100)
	l, kept := keeper(secret)
	fmt.Fprintln(l, strings.Repeat("x", maxLogLine-10)+secret+strings.Repeat("y", 1<<20))
	lines := kept.take()
	if len(lines) != 1 {
		t.Fatalf("%d lines", len(lines))
	}
	if m := lines[0].Message; len(m) > maxLogLine || strings.Contains(m, "s3cret") {
		t.Errorf("a line of %d bytes that ends in %q", len(m), m[len(m)-30:])
	}
}

func TestPluginCannotPassForAnother(t *testing.T) {
	l, kept := keeper()
	doc, err := json.Marshal(map[string]any{"level": "ERROR", "msg": "hello", "plugin": "other", "endpoint": "other", "pid": 1, "op": "x"})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(l, "%s\n", doc)
	var keys []string
	for _, a := range kept.take()[0].Attrs {
		keys = append(keys, a.Key)
	}
	if got := strings.Join(keys, " "); got != "op plugin_endpoint plugin_pid plugin_plugin" {
		t.Errorf("fields %s", got)
	}
}

func TestLabels(t *testing.T) {
	ctx := t.Context()
	for _, bad := range [][2]string{{"", "x"}, {"Tenant", "x"}, {"te-nant", "x"}, {"tenant", ""}, {"tenant", "a\nb"}, {"tenant", "ä"}, {"tenant", strings.Repeat("x", maxLabelValue+1)}} {
		ctx = WithLabel(ctx, bad[0], bad[1])
	}
	if got := Labels(ctx); len(got) != 0 {
		t.Errorf("labels %v, want none", got)
	}
	ctx = WithLabel(WithLabel(ctx, "tenant", "acme"), "run", "r 1")
	if got := Labels(ctx); len(got) != 2 || got["tenant"] != "acme" || got["run"] != "r 1" {
		t.Errorf("labels %v", got)
	}
	for n := range 20 {
		ctx = WithLabel(ctx, strings.Repeat("a", n+1), "x")
	}
	if got := Labels(ctx); len(got) != maxLabels {
		t.Errorf("%d labels, want %d", len(got), maxLabels)
	}
}

func FuzzLogLines(f *testing.F) {
	f.Add([]byte("plain\n{\"msg\":\"json\",\"level\":\"WARN\",\"a\":[1,{}]}\n"))
	f.Add([]byte("{\"level\":7,\"msg\":{}}\nhunter2 \xff\n\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		l, kept := keeper("hunter2")
		for len(said) > 0 {
			n := min(len(said), 7)
			if _, err := l.Write(said[:n]); err != nil {
				t.Fatal(err)
			}
			said = said[n:]
		}
		for _, line := range kept.take() {
			if strings.Contains(line.Message+fmt.Sprint(line.Attrs), "hunter2") {
				t.Errorf("the secret is in %+v", line)
			}
		}
	})
}
