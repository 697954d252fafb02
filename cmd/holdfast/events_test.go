package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

func streamOf(body io.Reader) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(body)}
}

// endless is a stream of one event that never ends.
type endless struct{ sent int64 }

func (e *endless) Read(b []byte) (int, error) {
	const line = "data: x\n"
	n := 0
	for len(b)-n >= len(line) {
		n += copy(b[n:], line)
	}
	e.sent += int64(n)
	return n, nil
}

func TestEventsAreBounded(t *testing.T) {
	e := new(endless)
	err := watch(streamOf(e), nil, func(string, []byte) error { return nil })
	if err == nil || e.sent > 64*maxEvent {
		t.Errorf("%v after %d bytes of one event", err, e.sent)
	}
	err = watch(streamOf(strings.NewReader("data: "+strings.Repeat("x", maxEvent+1)+"\n\n")), nil, func(string, []byte) error { return nil })
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a line that is too long: %v", err)
	}
}

// FuzzEvents: whatever a server streams, each event is within its bound, and the
// reading ends with the stream.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("event: run\ndata: {}\n\n"))
	f.Add([]byte("data: a\ndata: b\n\n: comment\nevent\n\n"))
	f.Add([]byte("\xef\xbb\xbfdata:x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := watch(streamOf(bytes.NewReader(b)), nil, func(event string, data []byte) error {
			if len(data) > maxEvent || len(event) > maxEvent {
				t.Errorf("an event of %d bytes", len(data))
			}
			return nil
		})
		if err == nil {
			t.Error("a stream without an end is a success")
		}
	})
}
