package plugin

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// Bounds of the time between two beats of a watch, whatever the host asks for.
const (
	shortestBeat = 10 * time.Millisecond
	longestBeat  = time.Minute
	// beatsPerLimit is how many beats a host asks for in the time that it waits
	// for one.
	beatsPerLimit = 3
)

// Watch passes an author's changes on and beats in between.
func (s *server) Watch(req *pluginv1.WatchRequest, out grpc.ServerStreamingServer[pluginv1.WatchResponse]) error {
	watcher, err := ability[sdk.Watcher](s, sdk.AbilityWatcher)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(out.Context())
	changes, ended := make(chan sdk.Change), make(chan error, 1)
	go func() { ended <- s.watch(ctx, watcher, changes) }()
	err = relayChanges(out, changes, ended, min(max(time.Duration(req.GetBeatMicros())*time.Microsecond, shortestBeat), longestBeat))
	cancel()
	for range changes { // which the author's end closes
	}
	return err
}

// watch runs an author's watch, and closes changes at its end.
func (s *server) watch(ctx context.Context, watcher sdk.Watcher, changes chan<- sdk.Change) (err error) {
	defer close(changes)
	defer func() { err = recovered(Log(ctx), "Watch", recover(), err) }()
	for change, err := range watcher.Watch(ctx) {
		if err != nil {
			return err
		}
		select {
		case changes <- change:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "the watch ended without a reason")
}

// relayChanges sends changes until the watch has ended, and says how it did.
func relayChanges(out grpc.ServerStreamingServer[pluginv1.WatchResponse], changes <-chan sdk.Change, ended <-chan error, beat time.Duration) error {
	beats := time.NewTicker(beat)
	defer beats.Stop()
	for {
		message := &pluginv1.WatchResponse{Beat: true}
		select {
		case change, ok := <-changes:
			if !ok {
				return <-ended
			}
			message = toChange(change)
		case <-beats.C:
		}
		if err := out.Send(message); err != nil {
			return err
		}
		beats.Reset(beat)
	}
}

// Watch is the host's end. The limit of a call holds for the first change, and
// then for the time between two messages, beats included; the time that the
// caller takes over a change is not counted.
func (r *remote) Watch(ctx context.Context) iter.Seq2[sdk.Change, error] {
	return func(yield func(sdk.Change, error) bool) {
		limited, cancel := context.WithCancel(ctx)
		defer cancel()
		timer := time.AfterFunc(r.limit, cancel)
		defer timer.Stop()
		in, err := r.client.Watch(limited, &pluginv1.WatchRequest{BeatMicros: (r.limit / beatsPerLimit).Microseconds()})
		for stands := false; err == nil; {
			var message *pluginv1.WatchResponse
			if message, err = in.Recv(); err != nil {
				break
			}
			if message.GetBeat() && !stands {
				continue // an author who hangs is beaten for too
			}
			timer.Stop()
			if !message.GetBeat() {
				stands = true
				change, err := fromChange(message)
				if !yield(change, err) || err != nil {
					return
				}
			}
			timer.Reset(r.limit)
		}
		if errors.Is(err, io.EOF) {
			err = sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "the plugin ended the watch")
		} else {
			err = r.failed(ctx, limited, "Watch", err)
		}
		yield(sdk.Change{}, err)
	}
}

var _ sdk.Watcher = (*remote)(nil)

func toChange(c sdk.Change) *pluginv1.WatchResponse {
	message := &pluginv1.WatchResponse{Machine: string(c.Machine)}
	if c.Now != nil {
		message.Now = toMachine(*c.Now)
	}
	return message
}

func fromChange(message *pluginv1.WatchResponse) (sdk.Change, error) {
	c := sdk.Change{Machine: sdk.MachineID(message.GetMachine())}
	if len(c.Machine) > maxID {
		return sdk.Change{}, broken("a machine's id has %d bytes", len(c.Machine))
	}
	if message.GetNow() == nil {
		return c, nil
	}
	now := fromMachine(message.GetNow())
	if err := checkMachine(now); err != nil {
		return sdk.Change{}, err
	}
	if now.ID != c.Machine {
		return sdk.Change{}, broken("a change of machine %q shows machine %q", c.Machine, now.ID)
	}
	c.Now = &now
	return c, nil
}
