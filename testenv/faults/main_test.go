package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/holdfast-dr/holdfast/testenv/stack"
)

var programs string // directory of the built programs

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "hf-faults-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = filepath.Join(dir, "bin")
	code := 1
	if err := stack.Build(context.Background(), programs, nil, "sim", "libvirt"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// number is a number from the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%s: want a number", name, text)
	}
	return n
}

// firstSeed is the seed of a test's first round, logged so that the test can be
// repeated. Each following round's is one more.
func firstSeed(t *testing.T) uint64 {
	t.Helper()
	seed := number(t, "FAULTS_SEED", rand.Uint64()>>16)
	t.Logf("the first seed is %d: FAULTS_SEED=%d repeats this", seed, seed)
	return seed
}

// randomOf is the random source of a seed.
func randomOf(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x686f6c6466617374)) }
