package postgres_test

import (
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/testenv/postgres"
)

func TestDatabasesAreDistinct(t *testing.T) {
	s := postgres.Start(t)
	one, two := s.Database(t), s.Database(t)
	if one == two || !strings.HasPrefix(one, "postgres://") {
		t.Fatalf("got %q and %q", one, two)
	}
}
