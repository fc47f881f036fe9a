package screen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"teleport/internal/fault"
)

// maxAnswer bounds an answer to a question.
const maxAnswer = 4096

// Prompter asks questions: on a terminal with the text shown, otherwise it reads
// the answers from lines of the input.
type Prompter struct {
	in    io.Reader
	lines *bufio.Reader
	talk  io.Writer
}

// NewPrompter returns a Prompter that reads from in and writes questions to talk.
func NewPrompter(in io.Reader, talk io.Writer) *Prompter {
	return &Prompter{in: in, lines: bufio.NewReaderSize(in, maxAnswer), talk: talk}
}

// Terminal reports whether a person is asked.
func (p *Prompter) Terminal() bool {
	_, ok := terminal(p.in)
	return ok
}

// Ask asks for one line.
func (p *Prompter) Ask(ctx context.Context, question string) (string, error) {
	return p.ask(ctx, question, true)
}

// Secret asks for one line that is not shown.
func (p *Prompter) Secret(ctx context.Context, question string) (string, error) {
	return p.ask(ctx, question, false)
}

// Say writes to the person.
func (p *Prompter) Say(format string, args ...any) { _, _ = fmt.Fprintf(p.talk, format, args...) }

func (p *Prompter) ask(ctx context.Context, question string, echo bool) (string, error) {
	fd, isTerminal := terminal(p.in)
	if !isTerminal {
		return p.line(question)
	}
	p.Say("%s: ", question)
	old, err := term.GetState(fd)
	if err != nil {
		return "", fault.Invalid("ask %q: %w", question, err)
	}
	type result struct {
		text string
		err  error
	}
	answered := make(chan result, 1)
	go func() {
		if echo {
			text, err := p.line(question)
			answered <- result{text, err}
			return
		}
		text, err := term.ReadPassword(fd)
		answered <- result{string(text), err}
	}()
	select {
	case r := <-answered:
		if !echo {
			p.Say("\n")
		}
		if errors.Is(r.err, io.EOF) {
			return "", fault.Invalid("no answer to %q", question)
		}
		return r.text, r.err
	case <-ctx.Done():
		_ = term.Restore(fd, old) // the read above cannot be interrupted
		p.Say("\n")
		return "", context.Cause(ctx)
	}
}

func (p *Prompter) line(question string) (string, error) {
	text, err := p.lines.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", fault.Limit("the answer to %q is longer than %d bytes", question, maxAnswer)
	case errors.Is(err, io.EOF) && len(text) > 0:
	case errors.Is(err, io.EOF):
		return "", fault.Invalid("no answer to %q: standard input has ended", question)
	case err != nil:
		return "", fmt.Errorf("read the answer to %q: %w", question, err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// terminal returns the descriptor of a stream that is a terminal.
func terminal(stream any) (int, bool) {
	f, ok := stream.(*os.File)
	if !ok || f == nil {
		return 0, false
	}
	fd := int(f.Fd())
	return fd, term.IsTerminal(fd)
}

// IsTerminal reports whether a stream is a terminal.
func IsTerminal(stream any) bool {
	_, ok := terminal(stream)
	return ok
}
