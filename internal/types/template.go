package types

// ValidTemplate checks a text that may have one reference to a trait in it, such as
// "{{external.email}}" or "dev-{{internal.logins}}".
func ValidTemplate(s string) error {
	return checkTemplate(s, func(string) error { return nil })
}
