package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// exportKind is a form in which an authority is exported.
type exportKind struct {
	authority string
	// tls takes the certificates, else the SSH keys; known makes lines of known_hosts.
	tls, known bool
}

func exportKinds() map[string]exportKind {
	return map[string]exportKind{
		"user": {authority: types.CAUser}, "host": {authority: types.CAHost, known: true}, "openssh": {authority: types.CAOpenSSH},
		"tls-user": {authority: types.CAUser, tls: true}, "tls-host": {authority: types.CAHost, tls: true},
		"db": {authority: types.CADB, tls: true}, "db-client": {authority: types.CADBClient, tls: true},
	}
}

const exportTypes = "user, host, openssh, tls-user, tls-host, db, db-client"

func newAuthExport(a *app) *cobra.Command {
	var typ string
	cmd := &cobra.Command{
		Use:   "export --type=TYPE",
		Short: "Print the public keys or certificates of an authority, for programs that are to trust it",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runAuthExport(cmd.Context(), a, typ) },
	}
	cmd.Flags().StringVar(&typ, "type", "", "what to print: "+exportTypes)
	return cmd
}

func runAuthExport(ctx context.Context, a *app, typ string) error {
	kind, ok := exportKinds()[typ]
	if !ok {
		return screen.Usage("--type=%s: use one of %s", typ, exportTypes)
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		resp, err := resourcev1.NewResourceServiceClient(conn).GetResource(ctx, &resourcev1.GetResourceRequest{Kind: types.KindCertAuthority, Name: kind.authority})
		if err != nil {
			return err
		}
		r, err := types.FromAny(resp.GetResource())
		if err != nil {
			return err
		}
		authority, ok := r.(*typesv1.CertAuthority)
		if !ok {
			return fault.Invalid("the cluster answered with another kind than %s", types.KindCertAuthority)
		}
		var out strings.Builder
		spec := authority.GetSpec()
		for _, set := range []*typesv1.CertAuthorityKeys{spec.GetActiveKeys(), spec.GetAdditionalTrustedKeys()} {
			if kind.tls {
				for _, pair := range set.GetTls() {
					out.WriteString(strings.TrimSpace(pair.GetCert()) + "\n")
				}
				continue
			}
			for _, pair := range set.GetSsh() {
				if kind.known {
					out.WriteString("@cert-authority *." + spec.GetClusterName() + " ")
				}
				out.WriteString(strings.TrimSpace(pair.GetPublicKey()) + "\n")
			}
		}
		return a.print("%s", out.String())
	})
}
