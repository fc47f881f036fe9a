package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strconv"

	"teleport/internal/fault"
)

// portsFile remembers the local ports of resources.
const portsFile = "local_ports.json"

// LocalPort returns the port on 127.0.0.1 at which a resource is found on this
// machine: always the same, so that programs can be set up once. It follows from the
// cluster and the name; if another resource has that one, or a program listens there
// when it is first asked for, it is the next, and is remembered.
func (h *Home) LocalPort(ctx context.Context, p Profile, kind, name string) (uint16, error) {
	if err := errors.Join(fileName("cluster", p.Cluster), fileName("name", name)); err != nil {
		return 0, err
	}
	unlock, err := h.lock(ctx, true)
	if err != nil {
		return 0, err
	}
	defer unlock()
	path := filepath.Join(h.dir, portsFile)
	ports, err := readPorts(path)
	if err != nil {
		return 0, err
	}
	key := p.Cluster + "/" + kind + "/" + name
	if port, ok := ports[key]; ok {
		return port, nil
	}
	taken := make(map[uint16]bool, len(ports))
	for _, port := range ports {
		taken[port] = true
	}
	first := portOf(key)
	for i := range uint16(portTries) {
		port := firstLocalPort + (first-firstLocalPort+i)%localPorts
		if taken[port] || !free(port) {
			continue
		}
		ports[key] = port
		data, err := json.MarshalIndent(ports, "", "  ")
		if err != nil {
			return 0, fmt.Errorf("encode the local ports: %w", err)
		}
		return port, writeFile(path, append(data, '\n'))
	}
	return 0, fault.Limit("no port from %d on is free for %q: give one with --port", first, name)
}

// readPorts reads the file; entries that could not have come from here are left out.
func readPorts(path string) (map[string]uint16, error) {
	ports := map[string]uint16{}
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ports, nil
	}
	if err != nil {
		return nil, fault.Invalid("read the local ports: %w", err)
	}
	if err := json.Unmarshal(data, &ports); err != nil {
		return nil, fault.Invalid("%s is damaged: correct or delete it", path)
	}
	for key, port := range ports {
		if port < 1024 {
			delete(ports, key)
		}
	}
	return ports, nil
}

// free reports whether nothing listens on the port.
func free(port uint16) bool {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err == nil {
		_ = ln.Close()
	}
	return err == nil
}
