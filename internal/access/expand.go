package access

// Expand returns what a text becomes for somebody with the traits: itself if it is plain,
// otherwise one text for each value of the trait that it refers to.
func Expand(text string, traits map[string][]string) ([]string, error) {
	t, err := parseTemplate(text)
	if err != nil {
		return nil, err
	}
	return t.expand(traits), nil
}
