package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// last fetches the machine's newest point and decides whether to build on it.
// A repository that shows a point that is not ours, or hides one, does not stop
// the run: it raises an alert, and the new point reads more.
func (r *run) last(ctx context.Context) (*point.Manifest, error) {
	var sealed []byte
	err := r.Mover.Retry.Do(ctx, func() (err error) {
		sealed, err = r.Repository.Last(ctx, r.Machine)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fetch the machine's last point: %w", err)
	}
	if sealed == nil {
		if len(r.Remembered) > 0 {
			r.alert(CodeHidden, "the repository shows no point of this machine, but %s was committed", r.Remembered[0])
		}
		return nil, nil
	}
	m, err := point.Open(sealed, r.Keys)
	if err == nil && (m.Public.Machine != r.Machine || m.Public.Repository != r.RepositoryID) {
		err = fmt.Errorf("it is of machine %s in repository %s: %w", m.Public.Machine, m.Public.Repository, point.ErrForged)
	}
	if err != nil {
		r.alert(CodeForged, "the last point that the repository shows is not built upon: %v", err)
		return nil, nil
	}
	id := m.Public.Point
	switch place := slices.Index(r.Remembered, id); {
	case place == 0 || id == r.Point:
	case place > 0:
		r.alert(CodeHidden, "the repository shows %s as the last point, but %s was committed after it", id, r.Remembered[0])
	case len(r.Remembered) > 0:
		r.alert(CodeUnknownPoint, "the repository shows %s as the last point, which this agent did not make; it made %s", id, r.Remembered[0])
	}
	return &m, nil
}

func (r *run) alert(code Code, format string, args ...any) {
	r.warn(Warning{Code: code, Alert: true, Message: fmt.Sprintf(format, args...)})
}

// since is the marks of the last point.
func (r *run) since() map[sdk.DiskID]sdk.Mark {
	if r.base == nil || r.tracker == nil {
		return nil
	}
	marks := make(map[sdk.DiskID]sdk.Mark)
	for _, d := range r.base.Private.Disks {
		if len(d.Mark) > 0 {
			marks[sdk.DiskID(d.ID)] = d.Mark
		}
	}
	return marks
}

// releaseMarks frees the marks of the point that the new one replaces as base.
func (r *run) releaseMarks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	for disk, mark := range r.since() {
		if bytes.Equal(mark, r.snap.Marks[disk]) {
			continue
		}
		err := await(ctx, func() error {
			return r.tracker.ReleaseMark(ctx, r.op("release "+string(disk)), r.Source, disk, mark)
		})
		if err != nil && !errors.Is(err, sdk.ErrNotFound) {
			r.warn(Warning{Code: CodeCleanUp, Disk: disk, Message: fmt.Sprintf("release the mark of point %s: %v", r.base.Public.Point, err)})
		}
	}
}

// Bounds of waiting for a back-end.
const (
	firstAsk    = 500 * time.Millisecond
	lastAsk     = 10 * time.Second
	unavailable = 5             // attempts
	patience    = 6 * time.Hour // for one call that is pending
)

// await repeats a call while the back-end says that it is still working, and a
// few times while it is unavailable.
func await(ctx context.Context, call func() error) error {
	began, failures := time.Now(), 0
	for wait := firstAsk; ; wait = min(2*wait, lastAsk) {
		err := call()
		switch {
		case errors.Is(err, sdk.ErrPending):
			if time.Since(began) > patience {
				return err
			}
		case errors.Is(err, sdk.ErrUnavailable):
			if failures++; failures == unavailable {
				return err
			}
		default:
			return err
		}
		pause := wait
		var e *sdk.Error
		if errors.As(err, &e) && e.After > 0 {
			pause = min(e.After, sdk.CallLimit)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-timer.C:
		}
	}
}
