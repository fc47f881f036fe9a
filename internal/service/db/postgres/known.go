package postgres

import "strconv"

// known are the prepared statements and portals of a session by name, within a bound of
// memory. Those without a name are always among them: there is one of each.
type known struct {
	statements map[string]*statement
	portals    map[string]*portal
	// held is how much text is kept in them.
	held int
}

func newKnown() known {
	return known{statements: map[string]*statement{}, portals: map[string]*portal{}}
}

func (k *known) parse(id string, st *statement) {
	k.forgetStatement(id)
	if id == "" || k.held+len(st.text) <= maxHeld && len(k.statements) < maxNames {
		k.statements[id] = st
		k.held += len(st.text)
	}
}

func (k *known) bind(id, from string, params []string) *portal {
	p := &portal{statement: k.statements[from], params: params}
	if p.statement == nil {
		p.statement = &statement{text: "[statement " + strconv.Quote(from) + " was not kept]"}
	}
	k.forgetPortal(id)
	if n := weight(params); id == "" || k.held+n <= maxHeld && len(k.portals) < maxNames {
		k.portals[id] = p
		k.held += n
	}
	return p
}

func (k *known) forgetStatement(id string) {
	if old := k.statements[id]; old != nil {
		k.held -= len(old.text)
		delete(k.statements, id)
	}
}

func (k *known) forgetPortal(id string) {
	if old := k.portals[id]; old != nil {
		k.held -= weight(old.params)
		delete(k.portals, id)
	}
}

func weight(params []string) int {
	n := 0
	for _, p := range params {
		n += len(p)
	}
	return n
}
