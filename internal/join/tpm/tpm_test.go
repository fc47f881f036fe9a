package tpm

import (
	"testing"

	"teleport/test/swtpm"
)

func TestIdentify(t *testing.T) {
	dev := swtpm.Start(t, "--create-ek-cert")
	id, err := Identify(dev.Device)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(id.PublicHash, id.CertificateSerial, len(dev.Authorities))
}
