package plugin

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
)

// TestProtocolDocument holds PROTOCOL.md against what it says of this package:
// others write programs from that page alone.
func TestProtocolDocument(t *testing.T) {
	text, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(text)), " ")
	facts := []string{
		"`" + handshake.MagicCookieKey + "` | `" + handshake.MagicCookieValue + "`",
		"`" + searchPath + "`",
		fmt.Sprintf("within %.0f seconds, and nothing after it", startLimit.Seconds()),
		fmt.Sprintf("exits with 0 within %.0f seconds", describeLimit.Seconds()),
		fmt.Sprintf("up to %d MiB, and exits", maxDescription>>20),
		fmt.Sprintf("Lines of over %d KiB are cut, and of over %d at once or %d a second", maxLogLine>>10, lineBurst, lineRate),
		fmt.Sprintf("at most %d MiB in both directions", MaxMessage>>20),
		fmt.Sprintf("a deadline of %.0f seconds", sdk.CallLimit.Seconds()),
		fmt.Sprintf("Of message and hint the host keeps %d KiB and %d KiB", maxErrorText>>10, maxErrorHint>>10),
		fmt.Sprintf("the host may open (up to %d)", maxConnections),
		"ids have 1 to " + thousands(maxID) + " bytes, names and notes at most " + thousands(maxText) + ", a machine at most " + thousands(maxDisks) + " disks",
		"a mark 1 to " + thousands(sdk.MaxMark) + " bytes",
		fmt.Sprintf("a label at most %s, a holder 1 to %d, a screenshot at most %d MiB", thousands(sdk.MaxLabel), sdk.MaxHolder, sdk.MaxScreenshot>>20),
	}
	for _, a := range sdk.Abilities() {
		facts = append(facts, "`"+string(a)+"`")
	}
	for _, code := range sdk.Codes() {
		facts = append(facts, "`"+string(code)+"`")
	}
	for _, fault := range []sdk.Fault{sdk.FaultPlugin, sdk.FaultBackend, sdk.FaultHost} {
		facts = append(facts, "`"+string(fault)+"`")
	}
	for _, fact := range facts {
		if !strings.Contains(page, fact) {
			t.Errorf("PROTOCOL.md does not say: %s", fact)
		}
	}
}

func thousands(n int) string { return fmt.Sprintf("%d,%03d", n/1000, n%1000) }
