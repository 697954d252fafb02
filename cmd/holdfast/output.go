package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/holdfast-dr/holdfast/core/lease"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// column is one column of a table over items of type T.
type column[T any] struct {
	title string
	value func(T) string
	right bool // numbers line up at the right
}

// list prints items: a table for people, or an array of the items as they came
// from the API for scripts.
func list[T any](a *app, items []T, columns ...column[T]) error {
	if a.output == "json" {
		if items == nil {
			items = []T{}
		}
		return a.json(items)
	}
	t := a.table()
	header := make(table.Row, len(columns))
	configs := make([]table.ColumnConfig, len(columns))
	for i, c := range columns {
		header[i] = c.title
		configs[i] = table.ColumnConfig{Number: i + 1, WidthMax: 72}
		if c.right {
			configs[i].Align, configs[i].AlignHeader = text.AlignRight, text.AlignRight
		}
	}
	t.AppendHeader(header)
	t.SetColumnConfigs(configs)
	for _, item := range items {
		row := make(table.Row, len(columns))
		for i, c := range columns {
			row[i] = cell(c.value(item))
		}
		t.AppendRow(row)
	}
	if len(items) == 0 {
		_, err := fmt.Fprintln(a.out, "none")
		return err
	}
	_, err := fmt.Fprintln(a.out, t.Render())
	return err
}

// field is one line of a thing's description.
type field struct{ name, value string }

// show prints one thing: its fields for people, leaving out empty ones, or the
// value itself for scripts.
func show(a *app, value any, fields ...field) error {
	if a.output == "json" {
		return a.json(value)
	}
	width := 0
	for _, f := range fields {
		if f.value != "" {
			width = max(width, len(f.name))
		}
	}
	for _, f := range fields {
		if f.value == "" {
			continue
		}
		if _, err := fmt.Fprintf(a.out, "%-*s  %s\n", width, f.name, printable(f.value)); err != nil {
			return err
		}
	}
	return nil
}

// say prints a sentence for people; scripts get nothing of it.
func (a *app) say(format string, args ...any) {
	if a.output != "json" {
		fmt.Fprintln(a.out, printable(fmt.Sprintf(format, args...)))
	}
}

// note prints a sentence for people beside the output, also when that is JSON.
func (a *app) note(format string, args ...any) {
	fmt.Fprintln(a.err, printable(fmt.Sprintf(format, args...)))
}

func (a *app) json(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table is an empty table in the program's style: no borders, so that it can be
// cut and pasted.
func (a *app) table() table.Writer {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatUpper
	style.Box.PaddingLeft = ""
	style.Box.PaddingRight = "  "
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	return t
}

// cell keeps a value on one line.
func cell(s string) string {
	return strings.NewReplacer("\n", " ", "\t", " ").Replace(printable(s))
}

// bytesText is a size for people, in powers of two.
func bytesText(n int64) string { return tenant.SizeText(n) }

// parseSize reads "10 GiB", "500GB", "2T" or plain bytes. As in the trade, GB
// means 2^30.
func parseSize(s string) (int64, error) {
	t := strings.ToUpper(strings.TrimSpace(s))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "B"), "I")
	shift := 0
	if i := strings.IndexAny(t, "KMGTPE"); i >= 0 {
		if i != len(t)-1 {
			return 0, fmt.Errorf("size %q: want a number and a unit, such as 500GiB or 2TiB", s)
		}
		shift = 10 * (1 + strings.IndexByte("KMGTPE", t[i]))
		t = strings.TrimSpace(t[:i])
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(t), 64)
	if err != nil || f < 0 || f != f {
		return 0, fmt.Errorf("size %q: want a number and a unit, such as 500GiB or 2TiB", s)
	}
	if f *= float64(int64(1) << shift); f > 1<<62 {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return int64(f), nil
}

// timeText is a moment for people, "" for none.
func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// leaseText is until when a contract lasts, as it was asked for: its last day, or
// the moment at which it ends.
func leaseText(end *time.Time) string {
	if end == nil || end.IsZero() {
		return ""
	}
	if day, whole := lease.LastDay(*end, time.Local); whole {
		return day.Format(time.DateOnly)
	}
	return timeText(*end)
}

// timePointer is the moment that t points to, the zero time for nil.
func timePointer(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// parseDate reads a date, which means its end in local time, or a moment in RFC
// 3339.
func parseDate(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	day, err := time.ParseInLocation("2006-01-02", s, time.Local)
	if err != nil {
		return time.Time{}, fmt.Errorf("date %q: want YYYY-MM-DD, or a moment such as 2028-12-31T18:00:00Z", s)
	}
	return day.AddDate(0, 0, 1), nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// readSecret reads one secret from a file, "-" being standard input. Secrets
// are never arguments, which every process on the machine can read.
func (a *app) readSecret(path string) (string, error) {
	const maxSecret = 64 << 10
	b, err := a.readInput(path, maxSecret)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("read secret: %s is empty", path)
	}
	return secret, nil
}

// readInput reads a whole file, "-" being standard input, of at most limit bytes.
func (a *app) readInput(path string, limit int64) ([]byte, error) {
	r := a.in
	if path != "-" {
		f, err := openFile(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, err
}
