package kubernetes

import (
	"context"
	"io"
	"os"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
)

// prove shows the token of the pod. The kubelet replaces the file long before the token
// in it expires, so it is read again at each attempt.
func prove(m method.Machine) method.Exchange {
	return func(context.Context, []byte) ([]byte, error) {
		path, source := accountDir+"/token", "the default, "+envToken+" is not set"
		if named := m.Getenv(envToken); named != "" {
			path, source = named, "from "+envToken
		}
		token, err := readFile(path, jwt.MaxToken)
		if err != nil {
			return nil, fault.New(fault.ErrInvalid, "no service account token: tried %s (%s): %w; in a pod, mount a projected volume with a serviceAccountToken of audience %q and set %s to its path",
				path, source, err, m.Cluster, envToken).WithCode(method.CodeCredentials)
		}
		if token == "" {
			return nil, fault.New(fault.ErrInvalid, "no service account token: %s (%s) is empty", path, source).WithCode(method.CodeCredentials)
		}
		return []byte(token), nil
	}
}

// readFile reads a file of at most limit bytes, without the space around its text.
func readFile(path string, limit int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return "", err
	}
	if int64(len(data)) > limit {
		return "", fault.Invalid("%s is longer than %d bytes", path, limit)
	}
	return strings.TrimSpace(string(data)), nil
}
