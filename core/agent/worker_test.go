package agent

import "testing"

func TestWhatWorkersAreTold(t *testing.T) {
	for listen, want := range map[string]string{
		":6181": "berlin:6181", "0.0.0.0:6181": "berlin:6181", "[::]:6181": "berlin:6181",
		"192.0.2.7:6181": "192.0.2.7:6181", "agent.example.com:7": "agent.example.com:7",
	} {
		if got := WorkersAddress(listen, "berlin"); got != want {
			t.Errorf("listening on %s, workers are told %s, want %s", listen, got, want)
		}
	}
}
