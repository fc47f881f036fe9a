// Package all lists the join methods, for the process that offers them.
package all

import (
	"slices"

	"teleport/internal/join/azure"
	"teleport/internal/join/boundkeypair"
	"teleport/internal/join/ec2"
	"teleport/internal/join/gcp"
	"teleport/internal/join/iam"
	"teleport/internal/join/jwt"
	"teleport/internal/join/kubernetes"
	"teleport/internal/join/method"
	"teleport/internal/join/oidc"
	"teleport/internal/join/oracle"
	"teleport/internal/join/token"
	"teleport/internal/join/tpm"
)

// Methods returns every join method. They share what they remember of issuers.
func Methods() []method.Method {
	issuers := jwt.NewIssuers()
	return slices.Concat([]method.Method{
		token.Method(), iam.Method(), ec2.Method(), azure.Method(issuers), gcp.Method(issuers), kubernetes.Method(issuers), oracle.Method(),
		tpm.Method(), boundkeypair.Method(),
	}, oidc.Methods(issuers))
}
