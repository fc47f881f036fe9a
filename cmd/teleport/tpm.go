package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"teleport/internal/fault"
	"teleport/internal/join/tpm"
)

type tpmIdentifyOptions struct{ device, format string }

func (a *app) newTPM() *cobra.Command {
	group := &cobra.Command{
		Use:   "tpm",
		Short: "The TPM of this machine",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var o tpmIdentifyOptions
	cmd := &cobra.Command{
		Use:   "identify",
		Short: "Print what the rules of join method tpm know this machine's TPM by",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.runTPMIdentify(o) },
	}
	cmd.Flags().StringVar(&o.device, "device", tpm.DefaultDevice, "the TPM, or unix:/path of the socket of one in software")
	cmd.Flags().StringVarP(&o.format, "format", "f", "text", "text or json")
	group.AddCommand(cmd)
	return group
}

func (a *app) runTPMIdentify(o tpmIdentifyOptions) error {
	if o.format != "text" && o.format != "json" {
		return fault.Invalid("bad --format=%q: expected text or json", o.format)
	}
	id, err := tpm.Identify(o.device)
	if err != nil {
		return err
	}
	if o.format == "json" {
		out := json.NewEncoder(a.stdout)
		out.SetIndent("", "  ")
		return out.Encode(map[string]any{
			"ek_public_hash": id.PublicHash, "ek_certificate_detected": len(id.Certificate) > 0, "ek_certificate_serial": id.CertificateSerial,
		})
	}
	detected := "no"
	if len(id.Certificate) > 0 {
		detected = "yes"
	}
	if _, err := fmt.Fprintf(a.stdout, "EK public hash:          %s\nEK certificate detected: %s\n", id.PublicHash, detected); err != nil {
		return err
	}
	if id.CertificateSerial == "" {
		return nil
	}
	_, err = fmt.Fprintf(a.stdout, "EK certificate serial:   %s\n", id.CertificateSerial)
	return err
}
