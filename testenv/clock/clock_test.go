package clock_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/testenv/clock"
)

// This program prints the time for each line that it reads, where a test starts
// it so.
func TestMain(m *testing.M) {
	if os.Getenv("CLOCK_TEST") != "" {
		lines := bufio.NewScanner(os.Stdin)
		began := time.Now()
		for lines.Scan() {
			fmt.Println(time.Now().Unix(), int64(time.Since(began)/time.Second))
		}
		return
	}
	os.Exit(m.Run())
}

func TestClockJumpsWhileAProgramRuns(t *testing.T) {
	c := clock.New(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := append(c.Prefix(), self)
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env, cmd.Stderr = append(os.Environ(), "CLOCK_TEST=1"), os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, jump := range []time.Duration{0, 31 * 24 * time.Hour, -40 * 24 * time.Hour, 9 * 24 * time.Hour} {
		c.Move(jump)
		before := c.Now().Unix()
		if _, err := io.WriteString(in, "\n"); err != nil || !lines.Scan() {
			t.Fatalf("the program says nothing: %v %v", err, lines.Err())
		}
		fields := strings.Fields(lines.Text())
		got, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil || got < before || got > c.Now().Unix() {
			t.Errorf("after a jump of %s the program sees %s, want %d: %v", jump, fields[0], before, err)
		}
		if passed, _ := strconv.ParseInt(fields[1], 10, 64); passed > 3600 {
			t.Errorf("after a jump of %s the program measures %d s", jump, passed)
		}
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
}
