package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	databasev1 "teleport/api/database/v1"
	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// exportKind is a form in which an authority is exported.
type exportKind struct {
	authority string
	// tls takes the certificates, else the SSH keys; known makes lines of known_hosts, and
	// der the bare certificate of the active key.
	tls, known, der bool
}

func exportKinds() map[string]exportKind {
	return map[string]exportKind{
		"user": {authority: types.CAUser}, "host": {authority: types.CAHost, known: true}, "openssh": {authority: types.CAOpenSSH},
		"tls-user": {authority: types.CAUser, tls: true}, "tls-host": {authority: types.CAHost, tls: true},
		"db": {authority: types.CADB, tls: true}, "db-client": {authority: types.CADBClient, tls: true},
		"tls-user-der": {authority: types.CAUser, tls: true, der: true}, "tls-host-der": {authority: types.CAHost, tls: true, der: true},
		"db-der": {authority: types.CADB, tls: true, der: true}, "db-client-der": {authority: types.CADBClient, tls: true, der: true},
	}
}

const exportTypes = "user, host, openssh, tls-user, tls-host, db, db-client, tls-user-der, tls-host-der, db-der, db-client-der"

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
		spec := authority.GetSpec()
		if kind.der {
			return a.writeDER(spec.GetActiveKeys().GetTls())
		}
		var out strings.Builder
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

// writeDER writes the certificate of the active key, of which there is one: programs that
// take this form read no second one.
func (a *app) writeDER(pairs []*typesv1.TlsKeyPair) error {
	if len(pairs) == 0 {
		return fault.NotFound("the authority has no certificate")
	}
	block, _ := pem.Decode([]byte(pairs[0].GetCert()))
	if block == nil {
		return fault.Invalid("the certificate of the authority cannot be read")
	}
	_, err := a.Out.Write(block.Bytes)
	return err
}

func newAuthCRL(a *app) *cobra.Command {
	var typ, out, format string
	cmd := &cobra.Command{
		Use:   "crl --type=db_client",
		Short: "Print an empty list of revoked certificates, for database servers that take no client certificate without one",
		Args:  screen.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "pem" && format != "der" {
				return screen.Usage("--format=%s: use pem or der", format)
			}
			return runAuthCRL(cmd.Context(), a, strings.ReplaceAll(typ, "-", "_"), out, format)
		},
	}
	cmd.Flags().StringVar(&typ, "type", types.CADBClient, "the authority: host, user, db, db_client")
	cmd.Flags().StringVarP(&out, "out", "o", "", "file to write, instead of standard output")
	cmd.Flags().StringVar(&format, "format", "pem", "pem or der")
	return cmd
}

func runAuthCRL(ctx context.Context, a *app, typ, out, format string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		resp, err := databasev1.NewDatabaseServiceClient(conn).SignRevocations(ctx, &databasev1.SignRevocationsRequest{Authority: typ})
		if err != nil {
			return fmt.Errorf("sign the list of revoked certificates: %w", err)
		}
		list := resp.GetList()
		if format == "pem" {
			list = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})
		}
		if out != "" {
			return a.writeFiles(true, []outFile{{out, list, 0o644}})
		}
		_, err = a.Out.Write(list)
		return err
	})
}
