package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

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
	case len(r.Remembered) > 0 && slices.Contains(r.Tried, id) && id > r.Remembered[0]:
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

// hold enters the marks of the snapshot in what the source keeps.
func (r *run) hold() {
	for disk, mark := range r.snap.Marks {
		r.keep(HeldMark{Disk: disk, Mark: mark})
	}
}

func (r *run) keep(h HeldMark) {
	same := func(o HeldMark) bool { return o.Disk == h.Disk && bytes.Equal(o.Mark, h.Mark) }
	if !slices.ContainsFunc(r.result.Held, same) {
		r.result.Held = append(r.result.Held, h)
	}
}

// releaseMarks frees every mark but those of the new point. What cannot be
// freed now stays in the Result for the next run.
func (r *run) releaseMarks(ctx context.Context) {
	if r.tracker == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	for disk, mark := range r.since() {
		r.keep(HeldMark{Disk: disk, Mark: mark})
	}
	held := r.result.Held
	r.result.Held = nil
	for _, h := range held {
		if bytes.Equal(h.Mark, r.snap.Marks[h.Disk]) {
			r.keep(h)
			continue
		}
		err := sdk.Await(ctx, func() error {
			return r.tracker.ReleaseMark(ctx, r.op(fmt.Sprintf("release %s %x", h.Disk, h.Mark)), r.Source, h.Disk, h.Mark)
		})
		if err != nil && !errors.Is(err, sdk.ErrNotFound) {
			r.keep(h)
			r.warn(Warning{Code: CodeCleanUp, Disk: h.Disk, Message: fmt.Sprintf("release an old mark: %v", err)})
		}
	}
}
