package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Every message as it is on the wire of version 1.
func TestWireIsWhatItWas(t *testing.T) {
	for _, m := range []struct {
		message any
		want    string
	}{
		{nil, ""},
		{greeting{Do: doEnrol, Token: "hfe_x", Request: []byte{1, 2}}, `{"do":"enrol","token":"hfe_x","request":"AQI="}`},
		{greeting{Do: doServe, About: About{Version: "1", OS: "linux", Arch: "arm64"}},
			`{"do":"serve","about":{"version":"1","os":"linux","arch":"arm64"}}`},
		{greeting{Do: doCarry, Token: "T"}, `{"do":"carry","token":"T"}`},
		{welcome{ID: "i", Name: "n", Certificate: [][]byte{{3}}}, `{"id":"i","name":"n","certificate":["Aw=="]}`},
		{request{ID: 1, Do: doInspect, Plugin: "sim"}, `{"id":1,"do":"inspect","plugin":"sim"}`},
		{request{ID: 2, Do: doStart, Process: "p", Plugin: "sim", SHA256: "ab"},
			`{"id":2,"do":"start","plugin":"sim","sha256":"ab","process":"p"}`},
		{request{ID: 3, Do: doCarryDisk, Process: "p", Handle: "h", Token: "T"},
			`{"id":3,"do":"carry-disk","process":"p","handle":"h","token":"T"}`},
		{answer{ID: 2, PID: 7}, `{"id":2,"pid":7}`},
		{answer{Ended: "p"}, `{"ended":"p"}`},
		{answer{ID: 4, Error: toWire(sdk.Errorf(sdk.ErrBusy, sdk.FaultPlugin, "no").WithHint("wait"))},
			`{"id":4,"error":{"codes":["busy"],"fault":"plugin","message":"no","hint":"wait"}}`},
	} {
		var got bytes.Buffer
		if err := writeFrame(&got, m.message); err != nil {
			t.Fatal(err)
		}
		want := string([]byte{0, 0, 0, byte(len(m.want))}) + m.want // after its length
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("%T: (-want +got)\n%s", m.message, diff)
		}
	}
}

func TestFramesAreBounded(t *testing.T) {
	var r request
	if _, err := readFrame(strings.NewReader("\x00\x01\x00\x01{}"+strings.Repeat(" ", 1<<16-1)), maxRequest, &r); err == nil {
		t.Error("a frame of 64 KiB and 1 was read")
	}
	if _, err := readFrame(strings.NewReader("\x00\x00\x00\x09{}"), maxRequest, &r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short frame: %v", err)
	}
	// What a later version adds is no error.
	if _, err := readFrame(strings.NewReader("\x00\x00\x00\x0e"+`{"id":5,"x":0}`), maxRequest, &r); err != nil || r.ID != 5 {
		t.Errorf("a field of a later version: %+v, %v", r, err)
	}
	if beat, err := readFrame(strings.NewReader("\x00\x00\x00\x00"), maxRequest, &r); err != nil || !beat {
		t.Errorf("a beat: %t, %v", beat, err)
	}
	if err := readMessage(strings.NewReader("\x00\x00\x00\x00"), maxRequest, &r); err == nil {
		t.Error("a beat was taken for a message")
	}
}

func TestErrorsSurvive(t *testing.T) {
	for _, code := range sdk.Codes() {
		for _, err := range []error{
			code.Sentinel(),
			sdk.Errorf(code.Sentinel(), sdk.FaultBackend, "disk vda").WithHint("look"),
			fmt.Errorf("start: %w", sdk.Errorf(code.Sentinel(), sdk.FaultPlugin, "died")),
		} {
			got := toWire(err).err()
			if sdk.CodeOf(got) != code || got.Error() != err.Error() || sdk.HintOf(got) != sdk.HintOf(err) {
				t.Errorf("%v (%s) arrives as %v (%s), hint %q", err, code, got, sdk.CodeOf(got), sdk.HintOf(got))
			}
		}
	}
	if toWire(nil).err() != nil {
		t.Error("nil arrives as an error")
	}
	long := toWire(errors.New(strings.Repeat("ä", maxText))).err()
	if len(long.Error()) > maxText || !utf8.ValidString(long.Error()) {
		t.Errorf("a long text arrives with %d bytes", len(long.Error()))
	}
	odd := (&wireError{Codes: []sdk.Code{"new", "busy"}, Fault: "moon", Message: "a\x1b[31mb"}).err()
	if !errors.Is(odd, sdk.ErrBusy) || strings.Contains(odd.Error(), "\x1b") {
		t.Errorf("an odd error arrives as %q", odd)
	}
	if (&wireError{}).err() == nil || (&wireError{}).err().Error() == "" {
		t.Error("an empty error arrives as none")
	}
}

func TestBacklogNeverWaits(t *testing.T) {
	b := newBacklog()
	line := []byte(strings.Repeat("x", 1023) + "\n")
	for range 2 * maxBacklog / len(line) {
		if _, err := b.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > maxBacklog+1024 {
		t.Errorf("%d bytes were kept", len(text))
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	var last struct{ Lines int }
	if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil || last.Lines != maxBacklog/len(line) {
		t.Errorf("the last line is %s, %v; want the number of those that are missing", lines[len(lines)-1], err)
	}
	if _, err := b.Write(line); err == nil {
		t.Error("a closed log was written")
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, m := range []any{nil, greeting{Do: doServe}, request{ID: 1, Do: doStart}, answer{ID: 1, Error: &wireError{Codes: []sdk.Code{"busy"}}}, welcome{ID: "x"}} {
		var b bytes.Buffer
		if err := writeFrame(&b, m); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		var a answer
		if beat, err := readFrame(bytes.NewReader(data), 4096, &a); err == nil && !beat {
			if err := a.Error.err(); a.Error != nil && (err == nil || len(err.Error()) > 3*maxText) {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		}
		var r request
		_, _ = readFrame(bytes.NewReader(data), 4096, &r)
		var g greeting
		_, _ = readFrame(bytes.NewReader(data), 4096, &g)
	})
}
