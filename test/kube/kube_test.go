package kube_test

import (
	"os"
	"strings"
	"testing"

	"teleport/test/kube"
)

func TestVersionIsThatOfTheModule(t *testing.T) {
	mod, err := os.ReadFile("apiserver/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "\nrequire k8s.io/kubernetes " + kube.Version + " "; !strings.Contains(string(mod), want) {
		t.Errorf("apiserver/go.mod requires another version than %s", kube.Version)
	}
}
