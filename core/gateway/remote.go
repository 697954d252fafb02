package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// RemoteRepository is a cloud repository at the far end of the wire. It is a
// mover.Reader.
type RemoteRepository struct {
	client *Client
	id     string
	path   string
}

// Repository names a cloud repository; nothing is asked yet.
func (c *Client) Repository(id string) *RemoteRepository {
	return &RemoteRepository{client: c, id: id, path: "/v1/agent/repositories/" + url.PathEscape(id)}
}

// ID is the cloud repository's id.
func (r *RemoteRepository) ID() string { return r.id }

// ServerTime is that of the client.
func (r *RemoteRepository) ServerTime() time.Duration { return r.client.ServerTime() }

// Begin opens a session for one new point of a machine, on a base point if
// there is one. Only one agent at a time writes a machine's points: *WriterError.
func (r *RemoteRepository) Begin(ctx context.Context, machine point.MachineID, base point.ID) (*RemoteSession, error) {
	var info SessionInfo
	err := r.client.call(ctx, "POST", r.path+"/sessions", BeginRequest{Machine: machine, Base: base}, &info)
	if err != nil {
		return nil, wrap(err, "begin session")
	}
	return r.session(info)
}

// Resume finds a session again, after a restart of the agent, say.
// ErrSessionClosed means that it is gone, and what it sent counts only if the
// next session sends it again or finds it stored.
func (r *RemoteRepository) Resume(ctx context.Context, id chunk.SessionID) (*RemoteSession, error) {
	var info SessionInfo
	if err := r.client.call(ctx, "GET", r.path+"/sessions/"+sessionText(id), nil, &info); err != nil {
		return nil, wrap(err, "resume session")
	}
	return r.session(info)
}

func (r *RemoteRepository) session(info SessionInfo) (*RemoteSession, error) {
	id, err := parseSession(info.ID)
	if err != nil {
		return nil, fmt.Errorf("the server's session %.40q is not an id", info.ID)
	}
	return &RemoteSession{repository: r, id: id, info: info, path: r.path + "/sessions/" + info.ID}, nil
}

// Manifest reads a point's manifest, as it was committed.
func (r *RemoteRepository) Manifest(ctx context.Context, id point.ID) ([]byte, error) {
	b, err := r.bytes(ctx, r.path+"/points/"+url.PathEscape(string(id)), point.MaxManifest)
	return b, wrap(err, "read manifest of point "+string(id))
}

func (r *RemoteRepository) bytes(ctx context.Context, path string, limit int64) (b []byte, err error) {
	err = r.client.do(ctx, exchange{method: "GET", path: path, attempt: controlAttempt, answer: func(h *http.Response) error {
		b, err = readAnswer(h, limit)
		return err
	}})
	return b, err
}

// Points lists the points of a machine, of all if it is empty, oldest first,
// one page after another.
func (r *RemoteRepository) Points(ctx context.Context, machine point.MachineID) iter.Seq2[PointInfo, error] {
	return func(yield func(PointInfo, error) bool) {
		after := point.ID("")
		for {
			page, err := r.PointPage(ctx, machine, after, maxPoints)
			if err != nil {
				yield(PointInfo{}, err)
				return
			}
			for _, p := range page.Points {
				if !yield(p, nil) {
					return
				}
			}
			if page.Next == "" || page.Next == after {
				return
			}
			after = page.Next
		}
	}
}

// PointPage is one page of Points.
func (r *RemoteRepository) PointPage(ctx context.Context, machine point.MachineID, after point.ID, limit int) (PointPage, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if machine != "" {
		query.Set("machine", string(machine))
	}
	if after != "" {
		query.Set("after", string(after))
	}
	var page PointPage
	err := r.client.call(ctx, "GET", r.path+"/points?"+query.Encode(), nil, &page)
	return page, wrap(err, "list points")
}

// Forget deletes a point. It is idempotent.
func (r *RemoteRepository) Forget(ctx context.Context, id point.ID) error {
	return wrap(r.client.call(ctx, "DELETE", r.path+"/points/"+url.PathEscape(string(id)), nil, nil), "forget point "+string(id))
}

// PutWrap keeps a wrapped keyring under a name.
func (r *RemoteRepository) PutWrap(ctx context.Context, name string, wrapped []byte) error {
	return wrap(r.client.do(ctx, exchange{method: "PUT", path: r.path + "/keys/" + url.PathEscape(name), body: wrapped,
		kind: "application/octet-stream", attempt: controlAttempt, answer: func(*http.Response) error { return nil }}), "keep keyring wrap")
}

// Wrap reads a wrapped keyring.
func (r *RemoteRepository) Wrap(ctx context.Context, name string) ([]byte, error) {
	b, err := r.bytes(ctx, r.path+"/keys/"+url.PathEscape(name), chunk.MaxWrap)
	return b, wrap(err, "read keyring wrap")
}

// Wraps lists the wrapped keyrings.
func (r *RemoteRepository) Wraps(ctx context.Context) ([]Wrap, error) {
	var out []Wrap
	err := r.client.call(ctx, "GET", r.path+"/keys", nil, &out)
	return out, wrap(err, "list keyring wraps")
}

// Read streams records, in the order asked. A connection that breaks is
// replaced, and the rest asked for again.
func (r *RemoteRepository) Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	for len(ids) > 0 {
		n := min(len(ids), MaxIDs)
		if err := r.read(ctx, kind, ids[:n], emit); err != nil {
			return fmt.Errorf("read records: %w", err)
		}
		ids = ids[n:]
	}
	return nil
}

func (r *RemoteRepository) read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	for len(ids) > 0 {
		got := 0
		err := r.client.do(ctx, exchange{method: "POST", path: r.path + "/read?kind=" + kindName(kind), body: appendIDs(nil, ids),
			kind: "application/octet-stream", attempt: transferLimit, answer: func(h *http.Response) error {
				n, err := r.receive(h, kind, ids, emit)
				got = n
				if err != nil && n > 0 && !isFinal(err) {
					return nil // what arrived is done with; the rest is a new exchange
				}
				return err
			}})
		if err != nil {
			return err
		}
		ids = ids[got:]
	}
	return nil
}

func isFinal(err error) bool {
	_, ok := errors.AsType[finalError](err)
	return ok
}

// receive reads the records of one answer and says how many came. What is in
// them, checksums included, is for whoever opens them.
func (r *RemoteRepository) receive(h *http.Response, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) (n int, err error) {
	watch := h.Request.Context().Value(watchKey{}).(*watch)
	watch.expect(true)
	buffer := records.Get().(*[]byte)
	defer records.Put(buffer)
	for n < len(ids) {
		record, err := readRecord(h.Body, buffer)
		if errors.Is(err, io.EOF) {
			return n, r.ended(h, ids[n])
		}
		if err != nil {
			return n, err
		}
		watch.expect(false) // whoever takes the record may take long
		r.client.tally.read.Add(int64(record.Size()))
		if record.ID != ids[n] || record.Kind != kind {
			return n, finally(fmt.Errorf("record %s: the server sent %s instead: %w", ids[n], record.ID, chunk.ErrDamaged))
		}
		if err := emit(record); err != nil {
			return n, finally(err)
		}
		watch.expect(true)
		n++
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(h.Body, 1)); err == nil {
		r.client.took(h.Trailer)
	}
	return n, nil
}

// records are the buffers into which records are received, one for each answer
// that is being read.
var records = sync.Pool{New: func() any { b := make([]byte, chunk.HeaderSize+chunk.Size+chunk.Overhead); return &b }}

// ended is why a stream is over before its time.
func (r *RemoteRepository) ended(h *http.Response, next chunk.ID) error {
	r.client.took(h.Trailer)
	line := h.Trailer.Get(HeaderProblem)
	if line == "" {
		return fmt.Errorf("the stream ended before record %s: %w", next, io.ErrUnexpectedEOF)
	}
	var p Problem
	if err := json.Unmarshal([]byte(line), &p); err != nil {
		return finally(fmt.Errorf("the stream ended before record %s, without saying why", next))
	}
	err := fmt.Errorf("record %s: %w", next, p.Err())
	if p.Temporary() {
		return err
	}
	return finally(err)
}

// readRecord reads one record into a buffer, which grows as needed within the
// bounds of the format. io.EOF means that there is no more.
func readRecord(in io.Reader, buffer *[]byte) (chunk.Record, error) {
	if _, err := io.ReadFull(in, (*buffer)[:chunk.HeaderSize]); err != nil {
		return chunk.Record{}, err
	}
	record, size, err := chunk.ParseHeader(*buffer)
	if err != nil {
		return chunk.Record{}, finally(err)
	}
	if len(*buffer) < size {
		larger := make([]byte, size)
		copy(larger, (*buffer)[:chunk.HeaderSize])
		*buffer = larger
	}
	record.Body = (*buffer)[chunk.HeaderSize:size:size]
	if _, err := io.ReadFull(in, record.Body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return chunk.Record{}, err
	}
	return record, nil
}

// RemoteSession is a session at the far end of the wire. It is a mover.Writer.
type RemoteSession struct {
	repository *RemoteRepository
	id         chunk.SessionID
	info       SessionInfo
	path       string
}

// ID is the session's id, which records are stamped with and by which the
// session can be resumed.
func (s *RemoteSession) ID() chunk.SessionID { return s.id }

// Info is what the server said of the session.
func (s *RemoteSession) Info() SessionInfo { return s.info }

// RoundTripTime is that of the client.
func (s *RemoteSession) RoundTripTime() time.Duration { return s.repository.client.RoundTripTime() }

// Connect is that of the client.
func (s *RemoteSession) Connect(ctx context.Context, n int) error {
	return s.repository.client.Connect(ctx, n)
}

// ServerTime is that of the client.
func (s *RemoteSession) ServerTime() time.Duration { return s.repository.ServerTime() }

// Have asks which ids the repository holds.
func (s *RemoteSession) Have(ctx context.Context, kind chunk.Kind, ids []chunk.ID) ([]bool, error) {
	have := make([]bool, 0, len(ids))
	for len(ids) > 0 {
		n := min(len(ids), MaxIDs)
		err := s.repository.client.do(ctx, exchange{method: "POST", path: s.path + "/have?kind=" + kindName(kind), body: appendIDs(nil, ids[:n]),
			kind: "application/octet-stream", attempt: controlAttempt, quiet: mute, answer: func(h *http.Response) error {
				b, err := readAnswer(h, MaxIDs/8+1)
				if err != nil {
					return err
				}
				bits, err := parseBits(b, n)
				if err != nil {
					return finally(err)
				}
				have = append(have, bits...)
				return nil
			}})
		if err != nil {
			return nil, wrap(err, "ask what the repository has")
		}
		ids = ids[n:]
	}
	return have, nil
}

// Put sends a batch of whole records.
func (s *RemoteSession) Put(ctx context.Context, batch []byte) error {
	if len(batch) == 0 {
		return nil
	}
	if len(batch) > MaxBatch {
		return fmt.Errorf("send records: a batch of %d bytes, at most %d", len(batch), MaxBatch)
	}
	err := s.repository.client.do(ctx, exchange{method: "POST", path: s.path + "/records", body: batch,
		kind: "application/octet-stream", attempt: dataAttempt, quiet: mute, answer: func(*http.Response) error { return nil }})
	if err == nil {
		s.repository.client.tally.put.Add(int64(len(batch)))
	}
	return wrap(err, "send records")
}

// Commit makes the point exist. Only its nil error promises durability. It may
// be repeated, also after an answer that got lost.
func (s *RemoteSession) Commit(ctx context.Context, manifest []byte) error {
	var out Receipt
	return wrap(s.repository.client.do(ctx, exchange{method: "POST", path: s.path + "/commit", body: manifest,
		kind: "application/octet-stream", attempt: commitAttempt, answer: func(h *http.Response) error { return readJSON(h, &out) }}), "commit point")
}

// Abort gives the session up. It is idempotent.
func (s *RemoteSession) Abort(ctx context.Context) error {
	return wrap(s.repository.client.call(ctx, "DELETE", s.path, nil, nil), "abort session")
}
