package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Label says whose a cloud repository is, for whoever finds its objects without
// the database. Nothing is decided by it while there is one.
type Label struct {
	Tenant     string // id
	TenantName string
	Name       string // of the cloud repository
	LimitBytes int64
	Written    time.Time
}

// labelJSON is the object below label/; its name is a number of 20 digits, and
// the highest counts.
type labelJSON struct {
	Repository string `json:"repository"`
	Tenant     string `json:"tenant"`
	TenantName string `json:"tenant_name"`
	Name       string `json:"name"`
	LimitBytes int64  `json:"limit_bytes"`
	Written    int64  `json:"written"` // microseconds since 1970, UTC
}

// SetLabel writes down whose the repository is, unless that is what the newest
// label says.
func (r *Repository) SetLabel(ctx context.Context, l Label) error {
	if err := r.Writable(); err != nil {
		return err
	}
	names, newest, err := labels(ctx, r.blobs, r.id)
	if err != nil {
		return fmt.Errorf("label repository %s: %w", r.id, err)
	}
	l.Written = newest.Written
	if l == newest {
		return nil
	}
	next := uint64(1)
	if len(names) > 0 {
		last, err := strconv.ParseUint(strings.TrimPrefix(names[len(names)-1], r.name(labelFolder)), 10, 64)
		if err != nil {
			return fmt.Errorf("label repository %s: %w", r.id, err)
		}
		next = last + 1
	}
	content, err := encodeSmall(labelJSON{Repository: r.id, Tenant: l.Tenant, TenantName: l.TenantName, Name: l.Name, LimitBytes: l.LimitBytes,
		Written: r.clock().UnixMicro()})
	if err != nil {
		return err
	}
	if err := r.putBytes(ctx, r.name(labelFolder, epochName(next)), content); err != nil {
		return fmt.Errorf("label repository %s: %w", r.id, err)
	}
	for _, name := range names {
		if err := r.blobs.Delete(ctx, name); err != nil && !errors.Is(err, blob.ErrNotFound) && !errors.Is(err, blob.ErrRetained) {
			return fmt.Errorf("remove an old label: %w", err)
		}
	}
	return nil
}

// labels are the names of the labels, the newest last, and what the newest one
// that can be read says.
func labels(ctx context.Context, blobs blob.Store, id string) (names []string, newest Label, err error) {
	prefix := id + "/" + labelFolder
	for object, err := range blobs.List(ctx, prefix) {
		if err != nil {
			return nil, Label{}, fmt.Errorf("list labels: %w", err)
		}
		if isEpochName(strings.TrimPrefix(object.Name, prefix)) {
			names = append(names, object.Name)
		}
	}
	for _, name := range slices.Backward(names) {
		b, err := blob.Read(ctx, blobs, name, maxSmall)
		if errors.Is(err, blob.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, Label{}, fmt.Errorf("read label: %w", err)
		}
		if l, err := parseLabel(b, id); err == nil {
			return names, l, nil
		}
	}
	return names, Label{}, nil
}

func parseLabel(b []byte, repository string) (Label, error) {
	var l labelJSON
	if err := decodeSmall(b, &l); err != nil {
		return Label{}, err
	}
	if l.Repository != repository {
		return Label{}, fmt.Errorf("label is of repository %.80q: %w", l.Repository, chunk.ErrDamaged)
	}
	return Label{Tenant: l.Tenant, TenantName: l.TenantName, Name: l.Name, LimitBytes: l.LimitBytes, Written: time.UnixMicro(l.Written).UTC()}, nil
}

func isEpochName(s string) bool {
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && epochName(n) == s
}
