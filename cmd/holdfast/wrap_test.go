package main

import (
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// testWrap wraps a keyring to a recipient that nobody keeps.
func testWrap(t *testing.T, keys *chunk.Keyring) []byte {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := keys.Wrap(identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}
