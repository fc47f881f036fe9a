package process

import (
	"golang.org/x/crypto/ssh"

	"teleport/internal/types"
)

// tunnelSigner is the certificate that the agent's end of a tunnel shows.
func (p *process) tunnelSigner() ssh.Signer { return p.holder.SSHSigner("") }

// tunnelHostKey checks that the other end is a Proxy of this cluster, whichever of
// them answered: behind one address there may be several.
func (p *process) tunnelHostKey() ssh.HostKeyCallback {
	return p.holder.Trust().AnyHostKeyCallback(types.RoleProxy)
}
