package agent

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Kit is a recovery kit: with it, the provider's address and a new enrolment
// token, a fresh machine lists and restores every point. It opens all backups
// of the keyring, so it is as secret as they are.
type Kit struct {
	Tenant      string
	Address     string // of the provider
	CA          string // fingerprint of the provider's CA
	Fingerprint chunk.Fingerprint
	Created     time.Time
	Identity    *age.X25519Identity // opens Wrap and the wrap kept at the provider
	Wrap        []byte              // the keyring, should the provider's copy be gone
}

const (
	kitHead  = "holdfast-kit: 1"
	wrapHead = "-----BEGIN HOLDFAST KEYRING-----"
	wrapTail = "-----END HOLDFAST KEYRING-----"
	maxKit   = 4 << 20
)

const kitText = `# Holdfast recovery kit
#
# This file opens every backup made with the keyring named below. Whoever has it
# and can reach the provider's repository can read them; without it, and without
# the machine that runs the agent, NOBODY can read them again, the provider
# included. Print it or keep it offline, in a place that burns on another day.
#
# To recover on a fresh machine:
#   holdfast agent connect ADDRESS --fingerprint CA   (asks for a new token)
#   holdfast key import-kit THIS-FILE
#   holdfast point list
#   holdfast restore machine POINT ...
#
`

// Encode writes the kit as text; with a passphrase, as an armored age file that
// the passphrase opens.
func (k Kit) Encode(passphrase string) ([]byte, error) {
	var text bytes.Buffer
	text.WriteString(kitText)
	fmt.Fprintf(&text, "%s\ntenant: %s\naddress: %s\nca: %s\nkeyring: %s\ncreated: %s\nidentity: %s\n%s\n",
		kitHead, k.Tenant, k.Address, k.CA, k.Fingerprint, k.Created.UTC().Format(time.RFC3339), k.Identity, wrapHead)
	encoded := base64.StdEncoding.EncodeToString(k.Wrap)
	for len(encoded) > 0 {
		n := min(len(encoded), 76)
		text.WriteString(encoded[:n] + "\n")
		encoded = encoded[n:]
	}
	text.WriteString(wrapTail + "\n")
	if passphrase == "" {
		return text.Bytes(), nil
	}
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypt recovery kit: %w", err)
	}
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, recipient)
	if err != nil {
		return nil, fmt.Errorf("encrypt recovery kit: %w", err)
	}
	if _, err := w.Write(text.Bytes()); err != nil {
		return nil, fmt.Errorf("encrypt recovery kit: %w", err)
	}
	if err := errors.Join(w.Close(), armored.Close()); err != nil {
		return nil, fmt.Errorf("encrypt recovery kit: %w", err)
	}
	return out.Bytes(), nil
}

// ErrKitPassphrase means that a kit is encrypted and the passphrase is missing
// or wrong.
var ErrKitPassphrase = errors.New("the recovery kit is encrypted: its passphrase is needed")

// DecodeKit reads what Encode wrote.
func DecodeKit(b []byte, passphrase string) (Kit, error) {
	if len(b) > maxKit {
		return Kit{}, fmt.Errorf("recovery kit of %d bytes: not a kit", len(b))
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte(armor.Header)) {
		if passphrase == "" {
			return Kit{}, ErrKitPassphrase
		}
		identity, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return Kit{}, fmt.Errorf("decrypt recovery kit: %w", err)
		}
		r, err := age.Decrypt(armor.NewReader(bytes.NewReader(bytes.TrimSpace(b))), identity)
		if err != nil {
			return Kit{}, fmt.Errorf("%w: %w", ErrKitPassphrase, err)
		}
		if b, err = io.ReadAll(io.LimitReader(r, maxKit)); err != nil {
			return Kit{}, fmt.Errorf("decrypt recovery kit: %w", err)
		}
	}
	return parseKit(b)
}

func parseKit(b []byte) (Kit, error) {
	fields, wrap := map[string]string{}, strings.Builder{}
	inWrap, ended := false, false
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxKit)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		switch {
		case line == wrapHead:
			inWrap = true
		case line == wrapTail:
			inWrap, ended = false, true
		case inWrap:
			wrap.WriteString(line)
		case line == "" || strings.HasPrefix(line, "#"):
		default:
			name, value, ok := strings.Cut(line, ": ")
			if !ok {
				return Kit{}, fmt.Errorf("recovery kit: line %.40q is not of a kit", line)
			}
			fields[name] = value
		}
	}
	if err := lines.Err(); err != nil {
		return Kit{}, fmt.Errorf("recovery kit: %w", err)
	}
	if !ended {
		return Kit{}, errors.New("recovery kit: cut off, or not a kit at all")
	}
	if v := fields["holdfast-kit"]; v != "1" {
		return Kit{}, fmt.Errorf("recovery kit: version %.20q: this program reads version 1", v)
	}
	k := Kit{Tenant: fields["tenant"], Address: fields["address"], CA: fields["ca"]}
	var err error
	if k.Fingerprint, err = chunk.ParseFingerprint(fields["keyring"]); err != nil {
		return Kit{}, fmt.Errorf("recovery kit: %w", err)
	}
	if k.Created, err = time.Parse(time.RFC3339, fields["created"]); err != nil {
		return Kit{}, fmt.Errorf("recovery kit: %w", err)
	}
	if k.Identity, err = age.ParseX25519Identity(fields["identity"]); err != nil {
		return Kit{}, errors.New("recovery kit: the identity is damaged") // err could quote it
	}
	if k.Wrap, err = base64.StdEncoding.DecodeString(wrap.String()); err != nil {
		return Kit{}, fmt.Errorf("recovery kit: keyring: %w", err)
	}
	if claimed, err := chunk.CheckWrap(k.Wrap); err != nil || claimed != k.Fingerprint {
		return Kit{}, errors.Join(errors.New("recovery kit: the keyring inside is damaged or another one"), err)
	}
	return k, nil
}

// Open unwraps the kit's keyring, from the kit itself or, if that copy does not
// open, from the wraps kept at the provider.
func (k Kit) Open(wraps ...[]byte) (*chunk.Keyring, error) {
	var failures []error
	for _, wrap := range append([][]byte{k.Wrap}, wraps...) {
		keys, err := chunk.Unwrap(wrap, k.Fingerprint, k.Identity)
		if err == nil {
			return keys, nil
		}
		failures = append(failures, err)
	}
	return nil, fmt.Errorf("open the keyring of the recovery kit: %w", errors.Join(failures...))
}
