package mongodb

import "time"

// Answers before the server is known: the versions are those that clients of the last
// years and servers of the next years have in common.
const (
	oldestWire = 0
	newestWire = 17
)

// hello introduces the session to the client: as a single server, whatever it is a member
// of, so that the client goes nowhere else; and without compression. server is how the
// server introduced itself, nil if it has not yet.
func hello(cmd *command, server []byte) []byte {
	var b builder
	primary, has := true, map[string]bool{}
	if server != nil {
		_ = elements(server, func(e element) bool {
			switch e.key {
			case "ismaster", "isWritablePrimary":
				primary = e.number() != 0
			// A router of a sharded cluster says so here.
			case "msg", "maxBsonObjectSize", "maxMessageSizeBytes", "maxWriteBatchSize", "logicalSessionTimeoutMinutes",
				"connectionId", "minWireVersion", "maxWireVersion", "readOnly":
				if !has[e.key] {
					b.raw(e)
				}
				has[e.key] = true
			}
			return true
		})
	}
	for _, d := range []struct {
		key   string
		value int32
	}{
		{"maxBsonObjectSize", 16 << 20},
		{"maxMessageSizeBytes", maxMessage},
		{"maxWriteBatchSize", 100_000},
		{"logicalSessionTimeoutMinutes", 30},
		{"minWireVersion", oldestWire},
		{"maxWireVersion", newestWire},
	} {
		// A server that says nothing of sessions has none.
		if !has[d.key] && (server == nil || d.key != "logicalSessionTimeoutMinutes") {
			b.int(d.key, d.value)
		}
	}
	name := "ismaster"
	if cmd.name == "hello" {
		name = "isWritablePrimary"
	}
	b.bool(name, primary).bool("helloOk", true).date("localTime", time.Now().UnixMilli())
	_ = elements(cmd.body, func(e element) bool {
		if e.key == "saslSupportedMechs" {
			b.array(e.key, mechanismScram, mechanismPlain)
			return false
		}
		return true
	})
	return b.double("ok", 1).doc()
}
