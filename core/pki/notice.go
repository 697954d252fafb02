package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"time"
)

// Notice is what a provider sends its tenants over another channel, so that
// they can check whom they connect to.
type Notice struct {
	Address     string      `json:"address"`
	Fingerprint Fingerprint `json:"-"`           // to be pinned
	Pin         string      `json:"fingerprint"` // the same as text
	Subject     string      `json:"subject"`
	Issuer      string      `json:"issuer"`
	Names       []string    `json:"names"`
	Serial      string      `json:"serial"`
	NotAfter    time.Time   `json:"not_after"`
	Imported    bool        `json:"imported"` // not issued by the provider's own CA
}

// NoticeOf describes the certificate that a server presents. The fingerprint is
// that of the provider's own CA, whose certificates everybody is presented who
// pinned it, so that it stays good whatever certificate is supplied. Without a CA
// it is that of the last certificate of the chain.
func NoticeOf(address string, c *tls.Certificate, own *Authority) (Notice, error) {
	last, err := x509.ParseCertificate(c.Certificate[len(c.Certificate)-1])
	if err != nil {
		return Notice{}, fmt.Errorf("read server certificate: %w", err)
	}
	leaf := c.Leaf
	n := Notice{Address: address, Fingerprint: FingerprintOf(last), Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(),
		Serial: leaf.SerialNumber.Text(16), NotAfter: leaf.NotAfter, Imported: own == nil || !own.Fingerprint().Equal(FingerprintOf(last))}
	if own != nil {
		n.Fingerprint = own.Fingerprint()
	}
	n.Pin = n.Fingerprint.String()
	for _, name := range leaf.DNSNames {
		if name != ProviderName {
			n.Names = append(n.Names, name)
		}
	}
	for _, ip := range leaf.IPAddresses {
		n.Names = append(n.Names, ip.String())
	}
	return n, nil
}

// Text is the notice for people, to be copied into a letter.
func (n Notice) Text() string {
	var b strings.Builder
	line := func(label, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-13s%s\n", label+":", value)
		}
	}
	line("Provider", n.Address)
	line("Fingerprint", n.Pin)
	line("Subject", n.Subject)
	line("Issuer", n.Issuer)
	line("Names", strings.Join(n.Names, ", "))
	line("Serial", n.Serial)
	line("Expires", n.NotAfter.UTC().Format(time.DateOnly))
	b.WriteString("\nCompare the fingerprint before you enter your token: holdfast agent connect ADDRESS --fingerprint …\n")
	return b.String()
}
