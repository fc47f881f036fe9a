package azure

import (
	"crypto/x509"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/join/method"
)

// cloud is one of Azure's separate worlds: a tenant of one means nothing in another.
// Every name that is trusted or asked comes from here.
type cloud struct {
	// name as the metadata service has it (azEnvironment).
	name string
	// signer is the name of those who sign attested documents, or the end of it.
	signer string
	// issuers are those of the tokens of a tenant: before the tenant, and after it.
	issuers [][2]string
	// audience is that of the resource manager, and its address.
	audience string
}

func clouds() []cloud {
	return []cloud{
		{
			name: "AzurePublicCloud", signer: "metadata.azure.com",
			issuers:  [][2]string{{"https://sts.windows.net/", "/"}, {"https://login.microsoftonline.com/", "/v2.0"}},
			audience: "https://management.azure.com/",
		},
		{
			name: "AzureUSGovernmentCloud", signer: "metadata.azure.us",
			issuers:  [][2]string{{"https://sts.windows.net/", "/"}, {"https://login.microsoftonline.us/", "/v2.0"}},
			audience: "https://management.usgovcloudapi.net/",
		},
		{
			name: "AzureChinaCloud", signer: "metadata.azure.cn",
			issuers:  [][2]string{{"https://sts.chinacloudapi.cn/", "/"}, {"https://login.partner.microsoftonline.cn/", "/v2.0"}},
			audience: "https://management.chinacloudapi.cn/",
		},
	}
}

// cloudNamed returns the cloud that the metadata service names.
func cloudNamed(name string) (cloud, bool) {
	for _, c := range clouds() {
		if strings.EqualFold(c.name, name) {
			return c, true
		}
	}
	return cloud{}, false
}

// cloudOf returns the cloud whose metadata service a certificate is of. Only the
// alternative names count: the common name is text that no authority promises to check.
func cloudOf(signer *x509.Certificate) (cloud, error) {
	for _, c := range clouds() {
		for _, name := range signer.DNSNames {
			if name = strings.ToLower(name); name == c.signer || strings.HasSuffix(name, "."+c.signer) {
				return c, nil
			}
		}
	}
	return cloud{}, fault.New(fault.ErrDenied, "the attested document is signed by %.256q: expected a metadata service of Azure, such as metadata.azure.com", strings.Join(signer.DNSNames, ", ")).WithCode(method.CodeProofSignature)
}

// issuer returns the issuer of a token among those that a tenant has in this cloud.
func (c cloud) issuer(claimed, tenant string) (string, error) {
	for _, around := range c.issuers {
		if issuer := around[0] + tenant + around[1]; issuer == claimed {
			return issuer, nil
		}
	}
	return "", fault.New(fault.ErrDenied, "the access token is of issuer %.256q: expected that of tenant %s in %s", claimed, tenant, c.name).WithCode(method.CodeProofIssuer)
}
