package authz

// HasRow reports whether the table has a row for a method.
func HasRow(method string) bool {
	_, ok := table[method]
	return ok
}

// Rows returns the size of the table.
func Rows() int { return len(table) }
