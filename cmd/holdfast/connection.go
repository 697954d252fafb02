package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
)

// connection is a provider that somebody signed in to. The token lies in a file
// of its own beside it.
type connection struct {
	Name        string `json:"name"`
	Address     string `json:"address"`
	Fingerprint string `json:"fingerprint,omitempty"` // of the provider's CA; "" where the system's authorities vouch
	User        string `json:"user,omitempty"`
	Tenant      string `json:"tenant,omitempty"` // id, for a tenant's user

	token string
}

const maxConnection = 64 << 10

// errNotSignedIn is a command for the provider where no connection was ever saved.
var errNotSignedIn = errors.New("not signed in to a provider")

// configDir is where connections are kept, readable by their user alone.
func (a *app) configDir() (string, error) {
	if dir := a.env("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "holdfast"), nil
	}
	if home := a.env("HOME"); home != "" {
		return filepath.Join(home, ".config", "holdfast"), nil
	}
	return "", withHint(errors.New("there is no home directory to keep connections in"), "set HOME or XDG_CONFIG_HOME")
}

// dataDir is where the server or the agent keeps its state if nobody says
// otherwise.
func (a *app) dataDir(process string) string {
	if dir := a.env("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "holdfast", process)
	}
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/holdfast", process)
	}
	return filepath.Join(a.env("HOME"), ".local", "state", "holdfast", process)
}

func checkConnectionName(name string) error {
	if name == "" || len(name) > 100 || strings.ContainsAny(name, "/\\\x00") || name[0] == '.' {
		return fmt.Errorf("connection name %.100q: want a plain word", name)
	}
	return nil
}

// save keeps a connection and its token, and makes it the current one.
func (a *app) save(c connection) error {
	if err := checkConnectionName(c.Name); err != nil {
		return err
	}
	dir, err := a.configDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save connection: %w", err)
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("save connection: %w", err)
	}
	for name, content := range map[string][]byte{c.Name + ".json": append(text, '\n'), c.Name + ".token": []byte(c.token + "\n"), "current": []byte(c.Name + "\n")} {
		if err := replaceFile(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("save connection: %w", err)
		}
	}
	return nil
}

// replaceFile writes a file that is whole or not there, for its user alone.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// connection finds the provider to speak to: from the environment if
// HOLDFAST_ADDRESS is set, else the connection that was asked for or saved last.
// HOLDFAST_TOKEN wins over a saved token.
func (a *app) connection() (connection, error) {
	c, err := a.saved()
	if address := a.env("HOLDFAST_ADDRESS"); address != "" {
		c, err = connection{Name: "environment", Address: address, Fingerprint: a.env("HOLDFAST_FINGERPRINT")}, nil
	}
	if err != nil {
		return connection{}, err
	}
	switch {
	case a.env("HOLDFAST_TOKEN") != "":
		c.token = a.env("HOLDFAST_TOKEN")
	case a.env("HOLDFAST_TOKEN_FILE") != "":
		if c.token, err = a.readSecret(a.env("HOLDFAST_TOKEN_FILE")); err != nil {
			return connection{}, err
		}
	}
	return c, nil
}

func (a *app) saved() (connection, error) {
	dir, err := a.configDir()
	if err != nil {
		return connection{}, err
	}
	name := a.context
	if name == "" {
		current, err := os.ReadFile(filepath.Join(dir, "current"))
		if err != nil {
			return connection{}, withHint(errNotSignedIn,
				"holdfast login ADDRESS --fingerprint FINGERPRINT, or set HOLDFAST_ADDRESS, HOLDFAST_FINGERPRINT and HOLDFAST_TOKEN")
		}
		name = strings.TrimSpace(string(current))
	}
	if err := checkConnectionName(name); err != nil {
		return connection{}, err
	}
	text, err := a.readInput(filepath.Join(dir, name+".json"), maxConnection)
	if errors.Is(err, fs.ErrNotExist) {
		return connection{}, withHint(fmt.Errorf("there is no saved connection %q", name), "holdfast login ADDRESS --context %s", name)
	}
	if err != nil {
		return connection{}, fmt.Errorf("read connection: %w", err)
	}
	c := connection{}
	if err := json.Unmarshal(text, &c); err != nil {
		return connection{}, fmt.Errorf("read connection %s: %w", name, err)
	}
	token, err := os.ReadFile(filepath.Join(dir, name+".token"))
	if err == nil {
		c.token = strings.TrimSpace(string(token))
	}
	return c, nil
}

// trust is how the provider of a connection is known.
func (c connection) trust() (pki.Trust, error) {
	if c.Fingerprint == "" {
		return pki.Trust{System: true}, nil
	}
	pin, err := pki.ParseFingerprint(c.Fingerprint)
	if err != nil {
		return pki.Trust{}, withHint(err, "the provider's operator sees it with: holdfast certificate show")
	}
	return pki.Trust{Pins: []pki.Fingerprint{pin}}, nil
}

// provider is the REST client of the provider that the user signed in to.
func (a *app) provider() (*client.Client, error) {
	c, err := a.connection()
	if err != nil {
		return nil, err
	}
	return a.dial(c)
}

// requestTimeout is how long a command waits for the beginning of an answer.
const requestTimeout = 2 * time.Minute

// dial makes the REST client of a connection.
func (a *app) dial(c connection) (*client.Client, error) {
	address, err := gateway.Address(c.Address)
	if err != nil {
		return nil, err
	}
	trust, err := c.trust()
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: trust.ClientConfig(host, nil), ResponseHeaderTimeout: requestTimeout,
		TLSHandshakeTimeout: 20 * time.Second, DialContext: (&net.Dialer{Timeout: 15 * time.Second}).DialContext}
	return client.NewClient("https://"+address, client.WithHTTPClient(&http.Client{Transport: transport}),
		client.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("User-Agent", "holdfast/"+versionText())
			if c.token != "" {
				r.Header.Set("Authorization", "Bearer "+c.token)
			}
			return nil
		}))
}

// agent is the REST client of the local agent, over its socket.
func (a *app) agent() (*client.Client, error) {
	path := a.socketPath()
	transport := &http.Transport{ResponseHeaderTimeout: requestTimeout, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		return conn, withHint(err, "start the agent: holdfast agent serve; or name its socket: --socket PATH")
	}}
	return client.NewClient("http://agent", client.WithHTTPClient(&http.Client{Transport: transport}))
}

// socketPath is where the local agent listens.
func (a *app) socketPath() string {
	if a.socket != "" {
		return a.socket
	}
	return filepath.Join(a.dataDir("agent"), "agent.sock")
}

// maxAnswer bounds an answer of the API; lists come in pages.
const maxAnswer = 64 << 20

// read decodes a good answer of the API, and turns any other into its error.
func read[T any](r *http.Response, err error) (T, error) {
	var out T
	body, err := readBody(r, err)
	if err != nil {
		return out, err
	}
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&out); err != nil {
		return out, fmt.Errorf("the server's answer is not of this API: %w", err)
	}
	return out, nil
}

// done is read for answers without content.
func done(r *http.Response, err error) error {
	_, err = readBody(r, err)
	return err
}

func readBody(r *http.Response, err error) ([]byte, error) {
	if err != nil {
		return nil, unwrapURL(err)
	}
	defer r.Body.Close()
	if r.StatusCode/100 != 2 {
		return nil, gateway.ReadProblem(r.StatusCode, r.Header.Get("Content-Type"), r.Body)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	return body, nil
}

// unwrapURL takes off the request's URL, which says nothing to people.
func unwrapURL(err error) error {
	var e interface {
		error
		Unwrap() error
		Timeout() bool
	}
	if errors.As(err, &e) && e.Unwrap() != nil {
		return fmt.Errorf("call the server: %w", e.Unwrap())
	}
	return fmt.Errorf("call the server: %w", err)
}
