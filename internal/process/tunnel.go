package process

import (
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/types"
)

// tunnelSigner is the certificate that the agent's end of a tunnel shows.
func (p *process) tunnelSigner() ssh.Signer { return p.holder.SSHSigner("") }

// tunnelHostKey checks that the other end is a Proxy of this cluster, whichever of
// them answered: behind one address there may be several.
func (p *process) tunnelHostKey() ssh.HostKeyCallback {
	return func(_ string, _ net.Addr, key ssh.PublicKey) error {
		cert, ok := key.(*ssh.Certificate)
		if !ok || len(cert.ValidPrincipals) == 0 {
			return fault.Unauthenticated("the Proxy showed an SSH key without a certificate of the cluster")
		}
		id, err := p.holder.Trust().VerifySSHHost(cert, cert.ValidPrincipals[0], time.Now())
		if err != nil {
			return err
		}
		if !id.Host.Has(types.RoleProxy) {
			return fault.Denied("host %s is not a Proxy of the cluster", id.Host.ID)
		}
		return nil
	}
}
