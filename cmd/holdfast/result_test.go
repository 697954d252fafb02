package main

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResultsAreForPeople(t *testing.T) {
	for raw, want := range map[string][]field{
		`{"sound":false,"objects":11,"bytes":71369454,"damaged_records":0,"faults":[{"object":"a/b","problem":"checksum"},{"object":"c","problem":"gone"}]}`: {
			{"sound", "no"}, {"objects", "11"}, {"bytes", "68.1 MiB"}, {"damaged records", "0"}, {"faults", "a/b: checksum, c: gone"},
		},
		`{"used_bytes":1024,"missing":["p1","p2"],"other":{"x":1},"none":null}`: {
			{"used", "1.0 KiB"}, {"missing", "p1, p2"}, {"other", `{"x":1}`}, {"none", ""},
		},
		`[1]`:         {{"result", "[1]"}},
		`{"a":1,"b"x`: {{"result", `{"a":1,"b"x`}},
		`{}`:          nil,
	} {
		if diff := cmp.Diff(want, resultFields(json.RawMessage(raw)), cmp.AllowUnexported(field{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", raw, diff)
		}
	}
}
