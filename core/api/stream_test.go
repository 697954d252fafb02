package api

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
)

// A stream ends soon after its token does, and not because a database was away.
func TestAStreamEndsWithItsToken(t *testing.T) {
	for name, c := range map[string]struct {
		caller access.Caller
		err    error
		ends   bool
	}{
		"as before":                 {access.Caller{Kind: access.ByUser, Role: access.TenantAdmin}, nil, false},
		"revoked":                   {access.Caller{}, access.ErrCredentials, true},
		"another role":              {access.Caller{Kind: access.ByUser, Role: access.TenantViewer}, nil, true},
		"no database":               {access.Caller{}, errors.New("connection refused"), false},
		"anonymous all of a sudden": {access.Caller{}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.WithValue(t.Context(), identifiedKey{}, identified{
					caller: access.Caller{Kind: access.ByUser, Role: access.TenantAdmin},
					again:  func() (access.Caller, error) { return c.caller, c.err },
				})
				ctx, stop := whileAllowed(ctx)
				defer stop()
				select {
				case <-ctx.Done():
					if !c.ends {
						t.Error("the stream ended")
					}
				case <-time.After(2 * allowedEvery):
					if c.ends {
						t.Error("the stream goes on")
					}
				}
			})
		})
	}
}
