package state

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// Holder is the identity of the process in memory: certificates ready for use and
// the trust in others, both replaced while they are in use. Its methods may be
// called from several goroutines at once.
type Holder struct {
	mu      sync.Mutex
	view    *view
	changed chan struct{}
}

// view is one state, read and checked; it never changes.
type view struct {
	state   State
	trust   *ca.Trust
	expires time.Time
	labels  map[string]string
	attests bool
	tls     map[types.SystemRole]*tls.Certificate
	ssh     map[types.SystemRole]ssh.Signer
}

// NewHolder reads and checks the state: keys and certificates that belong
// together, the trust, and certificates of this host by this cluster. Certificates
// that have expired are no error, see Expires.
func NewHolder(s *State) (*Holder, error) {
	v, err := newView(s)
	if err != nil {
		return nil, err
	}
	return &Holder{view: v, changed: make(chan struct{})}, nil
}

func (h *Holder) current() *view {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view
}

// State returns a copy of the state as it is now, to be saved.
func (h *Holder) State() *State { return h.current().state.clone() }

// Replace puts another state of the same host in place, after a renewal or a
// further join. If it is not good, the old one stays.
func (h *Holder) Replace(s *State) error {
	v, err := newView(s)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.view.state; old.HostID != s.HostID || old.Cluster != s.Cluster {
		return fault.Invalid("state is of host %q of cluster %q, expected %q of %q", s.HostID, s.Cluster, old.HostID, old.Cluster)
	}
	h.setLocked(v)
	return nil
}

// SetAuthorities puts another trust in place, as the Auth Service announces it.
// The state changes with it, so that a restart knows it too.
func (h *Holder) SetAuthorities(cas []*typesv1.CertAuthority) error {
	trust, err := ca.NewTrust(cas)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.view
	if trust.Cluster() != old.state.Cluster {
		return fault.Invalid("certificate authorities of cluster %q were announced, this host is in %q", trust.Cluster(), old.state.Cluster)
	}
	if slices.EqualFunc(trust.Authorities(), old.trust.Authorities(), func(a, b *typesv1.CertAuthority) bool { return proto.Equal(a, b) }) {
		return nil
	}
	var grant joinv1.Grant
	if err := proto.Unmarshal(old.state.Grant, &grant); err != nil {
		return fmt.Errorf("read the grant: %w", err)
	}
	grant.Authorities = trust.Authorities()
	v := *old
	if v.state.Grant, err = proto.Marshal(&grant); err != nil {
		return fmt.Errorf("write the grant: %w", err)
	}
	v.trust = trust
	v.tls = make(map[types.SystemRole]*tls.Certificate, len(old.tls))
	for role, c := range old.tls {
		v.tls[role] = withIssuer(c, trust)
	}
	h.setLocked(&v)
	return nil
}

func (h *Holder) setLocked(v *view) {
	h.view = v
	close(h.changed)
	h.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change.
func (h *Holder) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// Certificate returns the certificate for the service with the authority that
// signed it behind it in the chain; the process-level one for the role "". It is nil
// if the process does not have the role.
func (h *Holder) Certificate(service types.SystemRole) *tls.Certificate {
	return h.current().tls[service]
}

// SSHSigner returns the key with the host certificate for the service; the
// process-level one for the role "". It is nil if there is none.
func (h *Holder) SSHSigner(service types.SystemRole) ssh.Signer { return h.current().ssh[service] }

// Trust returns the trust of the moment.
func (h *Holder) Trust() *ca.Trust { return h.current().trust }

// Labels returns the labels that the join token enforces on this process.
func (h *Holder) Labels() map[string]string { return maps.Clone(h.current().labels) }

// Attests reports whether the process proves itself anew by its join method, where
// others renew.
func (h *Holder) Attests() bool { return h.current().attests }

// HostID returns the id of this host.
func (h *Holder) HostID() string { return h.current().state.HostID }

// Expires returns when the first of the certificates expires.
func (h *Holder) Expires() time.Time { return h.current().expires }

func newView(s *State) (*view, error) {
	if s == nil {
		return nil, fault.Invalid("there is no state")
	}
	v, err := readState(s)
	if err != nil {
		return nil, fmt.Errorf("state of host %q: %w", s.HostID, err)
	}
	return v, nil
}

func readState(s *State) (*view, error) {
	tlsKey, err := keys.ParsePrivate(s.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("TLS key: %w", err)
	}
	sshKey, err := keys.ParsePrivate(s.SSHKey)
	if err != nil {
		return nil, fmt.Errorf("SSH key: %w", err)
	}
	signer, err := ssh.NewSignerFromSigner(sshKey)
	if err != nil {
		return nil, fmt.Errorf("SSH key: %w", err)
	}
	var grant joinv1.Grant
	if err := proto.Unmarshal(s.Grant, &grant); err != nil {
		return nil, fault.Invalid("the grant cannot be read: %w", err)
	}
	trust, err := ca.NewTrust(grant.GetAuthorities())
	if err != nil {
		return nil, err
	}
	if trust.Cluster() != s.Cluster || grant.GetHostId() != s.HostID || grant.GetClusterName() != s.Cluster {
		return nil, fault.Invalid("the grant is for host %q of cluster %q, expected %q of %q", grant.GetHostId(), grant.GetClusterName(), s.HostID, s.Cluster)
	}
	v := &view{state: *s.clone(), trust: trust, labels: grant.GetLabels(), attests: grant.GetAttests(), tls: map[types.SystemRole]*tls.Certificate{}, ssh: map[types.SystemRole]ssh.Signer{}}
	process := &joinv1.ServiceCertificates{Tls: grant.GetCertificates().GetTls(), Ssh: grant.GetCertificates().GetSsh()}
	if err := v.add("", process, tlsKey, signer); err != nil {
		return nil, fmt.Errorf("certificate of the process: %w", err)
	}
	for name, c := range grant.GetCertificates().GetServices() {
		role, err := types.ParseSystemRole(name)
		if err != nil {
			return nil, err
		}
		if err := v.add(role, c, tlsKey, signer); err != nil {
			return nil, fmt.Errorf("certificate of the %s service: %w", role, err)
		}
	}
	return v, nil
}

// add reads the certificates for a service and checks that they are for these
// keys and this host, at the time when they were made: they may have expired since.
func (v *view) add(service types.SystemRole, c *joinv1.ServiceCertificates, tlsKey crypto.Signer, sshKey ssh.Signer) error {
	cert, err := x509.ParseCertificate(c.GetTls())
	if err != nil {
		return fault.Invalid("TLS certificate cannot be read: %w", err)
	}
	public, ok := tlsKey.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return fault.Invalid("TLS certificate is not for the key of this host")
	}
	id, err := v.trust.VerifyTLS([]*x509.Certificate{cert}, cert.NotBefore)
	if err != nil {
		return err
	}
	if err := v.own(id, service); err != nil {
		return err
	}
	v.expire(id.Expires)
	v.tls[service] = withIssuer(&tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: tlsKey, Leaf: cert}, v.trust)
	if len(c.GetSsh()) == 0 {
		return nil
	}
	sshCert, err := ca.ParseSSHCertificate(c.GetSsh())
	if err != nil {
		return err
	}
	from, _, err := identity.SSHTimes(sshCert)
	if err != nil {
		return err
	}
	if id, err = v.trust.VerifySSHHost(sshCert, v.state.HostID, from); err != nil {
		return err
	}
	if err := v.own(id, service); err != nil {
		return err
	}
	v.expire(id.Expires)
	if v.ssh[service], err = ssh.NewCertSigner(sshCert, sshKey); err != nil {
		return fault.Invalid("SSH certificate is not for the key of this host")
	}
	return nil
}

func (v *view) own(id *identity.Identity, service types.SystemRole) error {
	if id.Host == nil || id.Host.ID != v.state.HostID || id.Host.Service != service {
		return fault.Invalid("it is the certificate of %q, expected that of %q", id.Name(), v.state.HostID)
	}
	return nil
}

func (v *view) expire(t time.Time) {
	if v.expires.IsZero() || t.Before(v.expires) {
		v.expires = t
	}
}

// withIssuer returns the certificate with the authority that signed it behind it,
// for peers that know nothing but its pin. An authority that is not trusted any
// more stays where it is.
func withIssuer(c *tls.Certificate, trust *ca.Trust) *tls.Certificate {
	for _, issuer := range trust.HostCertificates() {
		if bytes.Equal(issuer.RawSubject, c.Leaf.RawIssuer) && c.Leaf.CheckSignatureFrom(issuer) == nil {
			out := *c
			out.Certificate = [][]byte{c.Leaf.Raw, issuer.Raw}
			return &out
		}
	}
	return c
}
