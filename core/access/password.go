package access

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// cost is what verifying one password takes. Hashes carry their own, so it may
// be raised later; the bounds keep a doctored hash from exhausting the server.
type cost struct {
	memoryKiB uint32
	passes    uint32
	threads   uint8
}

var (
	defaultCost = cost{memoryKiB: 64 << 10, passes: 2, threads: 1}
	maxCost     = cost{memoryKiB: 256 << 10, passes: 8, threads: 4}
)

const (
	saltSize = 16
	hashSize = 32
	// maxWait is how long a login waits for its turn before it is told ErrBusy.
	maxWait = 5 * time.Second
)

// Passwords hashes and verifies passwords, few at once.
type Passwords struct {
	turns chan struct{}
	cost  cost
	dummy string // verified for unknown users, so that both answers take as long
}

// NewPasswords allows so many operations at once, 64 MiB each.
func NewPasswords(parallel int) *Passwords {
	p := &Passwords{turns: make(chan struct{}, max(1, parallel)), cost: defaultCost}
	p.dummy = p.encode("", make([]byte, saltSize))
	return p
}

// CheckPassword says whether a password may be set.
func CheckPassword(password string) error {
	switch {
	case utf8.RuneCountInString(password) < MinPassword:
		return &tenant.InvalidError{Field: "password", Reason: fmt.Sprintf("must have at least %d characters", MinPassword)}
	case len(password) > MaxPassword:
		return &tenant.InvalidError{Field: "password", Reason: fmt.Sprintf("must have at most %d bytes", MaxPassword)}
	}
	return nil
}

// GeneratePassword makes one that can be read over a telephone: letters and the
// digits 2 to 7 in groups, at least 128 bits.
func GeneratePassword() string {
	text := strings.ToLower(rand.Text())
	var groups []string
	for len(text) > 5 {
		groups, text = append(groups, text[:5]), text[5:]
	}
	return strings.Join(append(groups, text), "-")
}

// Hash makes the text that is stored for a password.
func (p *Passwords) Hash(ctx context.Context, password string) (string, error) {
	if err := CheckPassword(password); err != nil {
		return "", err
	}
	if err := p.enter(ctx); err != nil {
		return "", err
	}
	defer p.leave()
	salt := make([]byte, saltSize)
	rand.Read(salt)
	return p.encode(password, salt), nil
}

// Verify compares a password with a stored hash and answers ErrCredentials if
// they do not belong together. An empty hash, of an unknown user or one without
// a password, takes as long and never matches.
func (p *Passwords) Verify(ctx context.Context, hash, password string) error {
	if len(password) > MaxPassword {
		return ErrCredentials
	}
	known := hash != ""
	if !known {
		hash = p.dummy
	}
	c, salt, want, err := decode(hash)
	if err != nil {
		return fmt.Errorf("read password hash: %w", err)
	}
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	got := argon2.IDKey([]byte(password), salt, c.passes, c.memoryKiB, c.threads, uint32(len(want)))
	if subtle.ConstantTimeCompare(got, want) != 1 || !known {
		return ErrCredentials
	}
	return nil
}

func (p *Passwords) enter(ctx context.Context) error {
	wait := time.NewTimer(maxWait)
	defer wait.Stop()
	select {
	case p.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
		return ErrBusy
	}
}

func (p *Passwords) leave() { <-p.turns }

func (p *Passwords) encode(password string, salt []byte) string {
	sum := argon2.IDKey([]byte(password), salt, p.cost.passes, p.cost.memoryKiB, p.cost.threads, hashSize)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.cost.memoryKiB, p.cost.passes, p.cost.threads,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(sum))
}

func decode(hash string) (c cost, salt, sum []byte, err error) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return c, nil, nil, fmt.Errorf("not an argon2id hash of version %d", argon2.Version)
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &c.memoryKiB, &c.passes, &c.threads); err != nil {
		return c, nil, nil, fmt.Errorf("parameters %q: %w", parts[3], err)
	}
	if c.memoryKiB == 0 || c.passes == 0 || c.threads == 0 ||
		c.memoryKiB > maxCost.memoryKiB || c.passes > maxCost.passes || c.threads > maxCost.threads {
		return c, nil, nil, fmt.Errorf("parameters %q are out of bounds", parts[3])
	}
	if salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil || len(salt) < 8 || len(salt) > 64 {
		return c, nil, nil, fmt.Errorf("bad salt")
	}
	if sum, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(sum) < 16 || len(sum) > 64 {
		return c, nil, nil, fmt.Errorf("bad sum")
	}
	return c, salt, sum, nil
}
