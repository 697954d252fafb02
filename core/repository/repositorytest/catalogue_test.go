package repositorytest_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/repository/repositorytest"
)

func TestCatalogueInMemory(t *testing.T) {
	repositorytest.RunCatalogue(t, func(*testing.T) repositorytest.Books {
		c, id := &repositorytest.Catalogue{}, uuid.NewString()
		c.Add(id, 1000, 2)
		return repositorytest.Books{
			Catalogue: c, Repository: id, Epoch: 2,
			Reserve: func(session string, n int64) { c.Reserve(id, session, n) },
			Used:    func() (used, pending int64) { return c.Used(id) },
			NextEpoch: func() uint64 {
				next := c.Epoch(id) + 1
				c.SetEpoch(id, next)
				return next
			},
		}
	})
}
