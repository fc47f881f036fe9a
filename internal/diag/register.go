package diag

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Register registers a metric of a service and returns the one to use: a service that is
// started again in the same process goes on with what is there. Without r nothing is
// registered. The name of the service is for errors.
func Register[C prometheus.Collector](r prometheus.Registerer, service string, c C) (C, error) {
	if r == nil {
		return c, nil
	}
	err := r.Register(c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if old, ok := already.ExistingCollector.(C); ok {
			return old, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("register metrics of the %s service: %w", service, err)
	}
	return c, nil
}
