package worker

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// protocol is the version of what the two ends say to each other, negotiated in
// the TLS handshake.
const protocol = "holdfast-worker/1"

// Times.
const (
	// Beat is how often both ends of a session say that they are there.
	Beat = 3 * time.Second
	// Silence is how long one end hears nothing before it calls the other lost.
	Silence = 4 * Beat
	// meetLimit bounds everything before a peer is known.
	meetLimit = 10 * time.Second
	// carryLimit bounds how long a stream takes to be there.
	carryLimit = 15 * time.Second
	// stopLimit bounds how long the end of a process is waited for.
	stopLimit = 10 * time.Second
)

// Bounds of what a peer sends.
const (
	maxGreeting = 64 << 10
	maxRequest  = 64 << 10
	maxAnswer   = 2 << 20 // holds a plugin's description
	maxText     = 4 << 10 // of an error
	maxWord     = 256     // a name, an id, a version
	maxHandle   = 4 << 10
)

// What a worker wants when it connects.
const (
	doEnrol = "enrol" // a certificate for a token
	doRenew = "renew" // a certificate for a certificate
	doServe = "serve" // a session
	doCarry = "carry" // to be the stream that the hub asked for
)

// greeting is the first thing that a worker says on a connection.
type greeting struct {
	Do      string `json:"do"`
	Token   string `json:"token,omitempty"`   // enrol, carry
	Request []byte `json:"request,omitempty"` // enrol, renew: certificate request, DER
	About   About  `json:"about,omitzero"`    // serve
}

// About is what a worker says of itself.
type About struct {
	Version string `json:"version"`
	OS      string `json:"os"`   // as GOOS
	Arch    string `json:"arch"` // as GOARCH
}

// welcome answers a greeting, except that of a stream, which just begins.
type welcome struct {
	Error *wireError `json:"error,omitempty"`
	ID    string     `json:"id,omitempty"`
	Name  string     `json:"name,omitempty"`
	// Certificate is a chain, DER.
	Certificate [][]byte `json:"certificate,omitempty"`
}

// What a hub asks for in a session.
const (
	doInspect   = "inspect"    // checksum and description of a plugin
	doStart     = "start"      // start a process
	doStop      = "stop"       // end a process
	doCarryCall = "carry-call" // a stream for calls to a process
	doCarryLog  = "carry-log"  // a stream of what a process says
	doCarryDisk = "carry-disk" // a stream to a disk that a process has open
)

// request is what a hub asks for in a session.
type request struct {
	ID      uint64 `json:"id"` // counts up from 1
	Do      string `json:"do"`
	Plugin  string `json:"plugin,omitempty"`  // inspect, start
	SHA256  string `json:"sha256,omitempty"`  // start
	Process string `json:"process,omitempty"` // the hub's name of it: all but inspect
	Handle  string `json:"handle,omitempty"`  // carry-disk
	Token   string `json:"token,omitempty"`   // carry-…: to be shown by the stream

	Limits plugin.Limits `json:"limits,omitzero"` // start: what the process may use
}

// answer answers the request with its id. An id of 0 answers nothing: the worker
// says that a process has ended by itself.
type answer struct {
	ID          uint64          `json:"id,omitempty"`
	Error       *wireError      `json:"error,omitempty"`
	SHA256      string          `json:"sha256,omitempty"`      // inspect
	Description json.RawMessage `json:"description,omitempty"` // inspect
	PID         int             `json:"pid,omitempty"`         // start
	Ended       string          `json:"ended,omitempty"`       // the process
}

// wireError is an error on its way.
type wireError struct {
	Codes   []sdk.Code `json:"codes,omitempty"`
	Fault   sdk.Fault  `json:"fault,omitempty"`
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
}

// toWire makes an error that keeps its sentinels; nil stays nil.
func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	w := &wireError{Fault: sdk.FaultHost, Hint: clip(sdk.HintOf(err), maxText)}
	text := err.Error()
	for _, code := range sdk.Codes() {
		if errors.Is(err, code.Sentinel()) {
			w.Codes = append(w.Codes, code)
			text = strings.TrimSuffix(strings.TrimSuffix(text, code.Sentinel().Error()), ": ")
		}
	}
	if e, ok := errors.AsType[*sdk.Error](err); ok && e.Fault != "" {
		w.Fault = e.Fault
	}
	w.Message = clip(text, maxText)
	return w
}

// err is the error at the other end; nil stays nil. Of several sentinels the
// first that is known here counts.
func (w *wireError) err() error {
	if w == nil {
		return nil
	}
	e := &sdk.Error{Fault: sdk.FaultHost, Message: clip(w.Message, maxText), Hint: clip(w.Hint, maxText)}
	for _, code := range w.Codes {
		if e.Kind = code.Sentinel(); e.Kind != nil {
			break
		}
	}
	switch w.Fault {
	case sdk.FaultPlugin, sdk.FaultBackend:
		e.Fault = w.Fault
	}
	if e.Kind == nil && e.Message == "" {
		e.Message = "the other end gave no reason"
	}
	return e
}

// clip cuts a text to at most n bytes of printable UTF-8.
func clip(text string, n int) string {
	text = strings.ToValidUTF8(text, "�")
	for len(text) > n {
		cut := n
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, text)
}

// writeFrame writes a message after its length, in one piece. nil is the empty
// frame, a beat.
func writeFrame(w io.Writer, message any) error {
	frame := make([]byte, 4)
	if message != nil {
		body, err := json.Marshal(message)
		if err != nil {
			return fmt.Errorf("encode message: %w", err)
		}
		frame = append(frame, body...)
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	_, err := w.Write(frame)
	return err
}

// readFrame reads a message of at most limit bytes. A beat leaves the message as
// it is and answers true. What a later version added is not an error.
func readFrame(r io.Reader, limit int, message any) (beat bool, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return false, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 {
		return true, nil
	}
	if n > uint32(limit) {
		return false, fmt.Errorf("a message of %d bytes is longer than %d", n, limit)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return false, fmt.Errorf("read message: %w", err)
	}
	if err := json.Unmarshal(body, message); err != nil {
		return false, fmt.Errorf("read message: %w", err)
	}
	return false, nil
}

// readMessage reads a message that is no beat.
func readMessage(r io.Reader, limit int, message any) error {
	beat, err := readFrame(r, limit, message)
	if err == nil && beat {
		err = errors.New("a beat in place of a message")
	}
	return err
}
