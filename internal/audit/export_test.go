package audit

// Tear leaves a log as a write does that failed half way.
func Tear(l *Log, part string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.torn = true
	_, err := l.file.WriteString(part)
	return err
}
