package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxEvent bounds one event of a stream, and one line.
const maxEvent = 1 << 20

// watch reads a stream of server-sent events and calls each for every one; it
// ends with the stream, or when each answers errStop.
func watch(r *http.Response, err error, each func(event string, data []byte) error) error {
	if err != nil {
		return unwrapURL(err)
	}
	if r.StatusCode/100 != 2 {
		_, err := readBody(r, nil)
		return err
	}
	defer r.Body.Close()
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, maxEvent)
	event, data := "message", []byte(nil)
	for lines.Scan() {
		line := lines.Text()
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if data != nil {
				if err := each(event, bytes.TrimSuffix(data, []byte("\n"))); errors.Is(err, errStop) {
					return nil
				} else if err != nil {
					return err
				}
			}
			event, data = "message", nil
		case name == "event":
			event = value
		case name == "data":
			if len(data)+len(value) > maxEvent {
				return fmt.Errorf("read events: one has more than %d bytes", maxEvent)
			}
			data = append(append(data, value...), '\n')
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read events: %w", err)
	}
	return io.ErrUnexpectedEOF // streams end by saying so
}

// errStop ends watch in good order.
var errStop = errors.New("stop")
