package mem_test

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/mem"
)

func TestStore(t *testing.T) {
	blobtest.Run(t, func(*testing.T) blobtest.Fixture {
		clock := blobtest.NewClock(time.Now())
		return blobtest.Fixture{Store: &mem.Store{Clock: clock.Now}, Clock: clock}
	})
}

func TestFaultyStoreWithoutFaultsIsAStore(t *testing.T) {
	blobtest.Run(t, func(*testing.T) blobtest.Fixture {
		clock := blobtest.NewClock(time.Now())
		// Without Adopt, which a store in memory does not have.
		return blobtest.Fixture{Store: struct{ blob.Store }{blobtest.NewFaulty(&mem.Store{Clock: clock.Now})}, Clock: clock}
	})
}
