package mongodb

import (
	"slices"
	"strings"

	"teleport/internal/fault"
)

// command is what a message asks for.
type command struct {
	name string
	// db is where, as the client says it.
	db string
	// names are all databases that the command reaches, db first.
	names []string
	body  []byte
}

// look finds out what a message asks for.
func look(r *request) (*command, error) {
	c := &command{body: r.body}
	if r.head.op == opQuery {
		return c, c.lookQuery(r.namespace)
	}
	var problem error
	said := false
	err := elements(r.body, func(e element) bool {
		if c.name == "" {
			c.name = e.key
		}
		if e.key != "$db" {
			return true
		}
		if e.kind != typeString || said {
			problem = fault.Invalid("a command whose $db is not one text")
			return false
		}
		c.db, said = e.str(), true
		return true
	})
	switch {
	case err != nil:
		return c, err
	case problem != nil:
		return c, problem
	case c.name == "" || len(c.name) > maxName:
		return c, fault.Invalid("a command without a name")
	case c.db == "":
		return c, fault.Invalid("the command %q does not say in which database", c.name)
	}
	c.names = []string{c.db}
	if reaching(c.name) {
		return c, c.reach(r.body, 0)
	}
	return c, nil
}

// lookQuery takes the one command that is still sent in the old form: the first of a
// connection.
func (c *command) lookQuery(namespace string) error {
	first := func() (e element) {
		_ = elements(c.body, func(f element) bool {
			e = f
			return false
		})
		return e
	}
	if e := first(); e.key == "$query" && e.kind == typeDocument {
		c.body = e.value
	}
	c.name = first().key
	if !strings.HasSuffix(namespace, ".$cmd") || !c.greets() {
		return fault.Unsupported("the client speaks a form of the protocol that servers no longer know (OP_QUERY)")
	}
	return elements(c.body, func(element) bool { return true })
}

// greets reports whether the command asks who the server is.
func (c *command) greets() bool {
	return c.name == "hello" || c.name == "isMaster" || c.name == "ismaster"
}

// logsIn reports whether the command is about who the client is. None of these reaches
// the server.
func (c *command) logsIn() bool {
	switch c.name {
	case "saslStart", "saslContinue", "authenticate", "logout", "getnonce", "copydbgetnonce", "copydbsaslstart":
		return true
	}
	return false
}

// everywhere reports whether the command is about the connection or what was begun on it,
// and so about no database, whichever it names.
func (c *command) everywhere() bool {
	switch c.name {
	case "ping", "buildInfo", "buildinfo", "whatsmyuri", "connectionStatus", "startSession", "endSessions", "refreshSessions",
		"commitTransaction", "abortTransaction":
		return true
	}
	return false
}

// reaching reports whether a command may name another database than its own.
func reaching(name string) bool {
	switch name {
	case "aggregate", "mapReduce", "mapreduce", "explain", "create", "collMod":
		return true
	}
	return false
}

// reach finds the other databases of a command: those of $out, $merge, $lookup and
// $unionWith, of the output of mapReduce, and of what is explained. A field of a document
// that looks the same is taken for one as well.
func (c *command) reach(doc []byte, depth int) error {
	if depth > maxDepth {
		return fault.Invalid("documents that are more than %d deep", maxDepth)
	}
	var problem error
	err := elements(doc, func(e element) bool {
		if e.key == "$db" && depth > 0 {
			c.add(e.str())
		}
		if e.kind != typeDocument && e.kind != typeArray {
			return true
		}
		switch e.key {
		case "$out", "into", "from", "out", "$unionWith":
			problem = elements(e.value, func(inner element) bool {
				if inner.key == "db" {
					c.add(inner.str())
				}
				return true
			})
		}
		if problem == nil {
			problem = c.reach(e.value, depth+1)
		}
		return problem == nil
	})
	if problem != nil {
		return problem
	}
	return err
}

func (c *command) add(name string) {
	if name != "" && !slices.Contains(c.names, name) {
		c.names = append(c.names, name)
	}
}

// text is the command as it is recorded, with what was read of its documents.
func (c *command) text(sequences []sequence, limit int) string {
	p := printer{limit: limit, silent: func(key string) bool { return key == "lsid" || key == "$clusterTime" || key == "$db" }}
	if c.name == "createUser" || c.name == "updateUser" {
		p.secret = func(key string) bool { return key == "pwd" }
	}
	p.document(c.body, 0, false, func(first bool) {
		for _, s := range sequences {
			if !first {
				p.write(", ")
			}
			first = false
			p.quote(s.name)
			p.write(": [")
			for docs := s.docs; len(docs) > 0 && !p.full(); {
				doc, err := document(docs)
				if err != nil {
					p.write(cut)
					break
				}
				p.document(doc, 1, false, nil)
				if docs = docs[len(doc):]; len(docs) > 0 {
					p.write(", ")
				}
			}
			p.write("]")
		}
	})
	return string(p.out)
}

// failure is what an answer says went wrong, or "".
func failure(doc []byte) string {
	ok, text := int64(1), ""
	_ = elements(doc, func(e element) bool {
		switch e.key {
		case "ok":
			ok = e.number()
		case "errmsg":
			text = e.str()
		case "writeErrors", "writeConcernError":
			if text == "" {
				text = e.key + ": " + errmsg(e)
			}
		}
		return true
	})
	if ok != 1 && text == "" {
		text = "the command failed"
	}
	return text
}

// errmsg finds the first text of an error in a document, or in an array of them.
func errmsg(e element) (text string) {
	if e.kind != typeDocument && e.kind != typeArray {
		return ""
	}
	_ = elements(e.value, func(inner element) bool {
		switch {
		case inner.key == "errmsg":
			text = inner.str()
		case e.kind == typeArray && inner.kind == typeDocument:
			text = errmsg(inner)
		}
		return text == ""
	})
	return text
}
