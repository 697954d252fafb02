package worker

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/sdk"
)

// DefaultPort is where hubs listen when nobody chose another port.
const DefaultPort = "6181"

// The files of a worker's directory. The second one is an enrolment whose answer
// has not come yet: repeating it with the same key is safe.
const (
	identityFile  = "worker.json"
	enrollingFile = "enrolling.json"
)

// maxIdentity bounds what is read of them.
const maxIdentity = 1 << 20

// Identity is what a worker is to its hub. Its text form holds the private key.
type Identity struct {
	Address     string `json:"address"`     // of the hub, host:port
	Fingerprint string `json:"fingerprint"` // of the hub's authority
	ID          string `json:"id,omitempty"`
	Name        string `json:"name,omitempty"`
	Key         string `json:"key"`                   // PEM
	Certificate string `json:"certificate,omitempty"` // PEM chain

	key  *ecdsa.PrivateKey
	pin  pki.Fingerprint
	leaf *x509.Certificate
}

// load reads an identity; fs.ErrNotExist without one.
func load(path string) (*Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > maxIdentity {
		return nil, errors.Join(fmt.Errorf("read %s: it is not what a worker writes", path), err)
	}
	var id Identity
	// The text of the error could quote the key.
	if json.NewDecoder(f).Decode(&id) != nil {
		return nil, fmt.Errorf("read %s: it is not what a worker writes", path)
	}
	if err := id.parse(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &id, nil
}

func (i *Identity) parse() (err error) {
	if i.pin, err = pki.ParseFingerprint(i.Fingerprint); err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(i.Key))
	if block == nil {
		return errors.New("there is no private key in it")
	}
	if i.key, err = pki.ParseKey(block.Bytes); err != nil {
		return errors.New("its private key does not parse")
	}
	if i.Certificate == "" {
		return nil
	}
	if block, _ = pem.Decode([]byte(i.Certificate)); block == nil {
		return errors.New("its certificate is not PEM")
	}
	i.leaf, err = x509.ParseCertificate(block.Bytes)
	return err
}

// newIdentity makes a key for a hub.
func newIdentity(address string, pin pki.Fingerprint) (*Identity, error) {
	key, err := pki.NewAgentKey()
	if err != nil {
		return nil, err
	}
	der, err := pki.MarshalKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return &Identity{Address: address, Fingerprint: pin.String(), pin: pin, key: key,
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}, nil
}

// save writes an identity whole or not at all.
func (i *Identity) save(path string) error {
	doc, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".worker-*") // mode 0600
	if err != nil {
		return fmt.Errorf("store identity: %w", err)
	}
	_, err = f.Write(append(doc, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("store identity: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// take keeps the certificate of a welcome, after checking that it is of our key.
func (i *Identity) take(w welcome) error {
	if w.ID == "" || len(w.ID) > maxWord || len(w.Name) > maxWord || len(w.Certificate) == 0 || len(w.Certificate) > 4 {
		return errors.New("the agent's answer makes no sense")
	}
	leaf, err := x509.ParseCertificate(w.Certificate[0])
	if err != nil {
		return fmt.Errorf("read our certificate: %w", err)
	}
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(i.key.Public()) {
		return errors.New("the agent's answer is a certificate of another key")
	}
	var chain strings.Builder
	for _, der := range w.Certificate {
		chain.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	i.ID, i.Name, i.Certificate, i.leaf = w.ID, clip(w.Name, maxWord), chain.String(), leaf
	return nil
}

// dial connects to the hub and says what for.
func (i *Identity) dial(ctx context.Context, g greeting) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, meetLimit)
	defer cancel()
	host, _, err := net.SplitHostPort(i.Address)
	if err != nil {
		return nil, fmt.Errorf("address of the agent: %w", err)
	}
	var own func() (*tls.Certificate, error)
	if i.leaf != nil {
		own = func() (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{i.leaf.Raw}, PrivateKey: i.key, Leaf: i.leaf}, nil
		}
	}
	config := pki.Trust{Pins: []pki.Fingerprint{i.pin}}.ClientConfig(host, own)
	config.NextProtos = []string{protocol}
	config.DynamicRecordSizingDisabled = true
	// Where nothing is sent for long, such as on a disk of an idle job, a stream
	// whose other end is gone is still noticed.
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: Silence, Interval: Beat, Count: 4}}
	raw, err := dialer.DialContext(ctx, "tcp", i.Address)
	if err != nil {
		return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "%v", err).WithHint("is the agent up, and does it listen for workers there?")
	}
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)
	conn := tls.Client(raw, config)
	err = conn.HandshakeContext(ctx)
	if err == nil {
		err = writeFrame(conn, g)
	}
	if err != nil {
		_ = raw.Close()
		if e, ok := errors.AsType[*pki.UntrustedError](err); ok {
			return nil, sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "%s presented the key %s, which is not the one that was agreed on", i.Address, e.Presented).
				WithHint("nothing was sent; compare the fingerprint with the one that holdfast worker invite printed at the agent")
		}
		return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "connect to %s: %v", i.Address, err)
	}
	return conn, nil
}

// request asks the hub for a certificate.
func (i *Identity) request(ctx context.Context, g greeting) error {
	var err error
	if g.Request, err = pki.NewRequest(i.key); err != nil {
		return err
	}
	conn, err := i.dial(ctx, g)
	if err != nil {
		return err
	}
	defer conn.Close()
	var w welcome
	if err := readMessage(conn, maxGreeting, &w); err != nil {
		return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "wait for the answer of %s: %v", i.Address, err)
	}
	if err := w.Error.err(); err != nil {
		return err
	}
	return i.take(w)
}

// Enrolment is how a worker comes to know its hub.
type Enrolment struct {
	Dir         string // of the worker's files; it is made
	Address     string // of the hub, the port is optional
	Fingerprint string
	Token       string
}

// Enrol connects a worker to a hub, in place of the one that it had. Repeating
// it with the same token is safe, if an answer was lost. A worker that runs takes
// the new identity when it connects next.
func Enrol(ctx context.Context, e Enrolment) (Identity, error) {
	address := e.Address
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), DefaultPort)
	}
	pin, err := pki.ParseFingerprint(e.Fingerprint)
	if err != nil {
		return Identity{}, err
	}
	if err := os.MkdirAll(e.Dir, 0o700); err != nil {
		return Identity{}, fmt.Errorf("make the worker's directory: %w", err)
	}
	begun := filepath.Join(e.Dir, enrollingFile)
	id, err := load(begun)
	if err != nil || id.Address != address || id.pin != pin {
		if id, err = newIdentity(address, pin); err != nil {
			return Identity{}, err
		}
		if err := id.save(begun); err != nil {
			return Identity{}, err
		}
	}
	if err := id.request(ctx, greeting{Do: doEnrol, Token: strings.TrimSpace(e.Token)}); err != nil {
		return Identity{}, fmt.Errorf("enrol: %w", err)
	}
	if err := id.save(filepath.Join(e.Dir, identityFile)); err != nil {
		return Identity{}, err
	}
	if err := os.Remove(begun); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("remove the finished enrolment: %w", err)
	}
	return *id, nil
}

// Load is the identity of a worker's directory.
func Load(dir string) (Identity, error) {
	id, err := load(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "this worker is not connected to an agent").
			WithHint("at the agent: holdfast worker invite NAME; here: holdfast worker connect ADDRESS --fingerprint FINGERPRINT")
	}
	if err != nil {
		return Identity{}, err
	}
	if id.leaf == nil {
		return Identity{}, fmt.Errorf("read %s: there is no certificate in it", identityFile)
	}
	return *id, nil
}

// renewed is the identity with a certificate that is not due, written where it
// was before. Without an answer the present one is used as long as it lasts.
func (i Identity) renewed(ctx context.Context, dir string, now time.Time) (Identity, error) {
	if now.Before(pki.RenewAt(i.leaf)) {
		return i, nil
	}
	next := i
	if err := next.request(ctx, greeting{Do: doRenew}); err != nil {
		return i, fmt.Errorf("renew the certificate: %w", err)
	}
	return next, next.save(filepath.Join(dir, identityFile))
}
