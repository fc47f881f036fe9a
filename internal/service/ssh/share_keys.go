package ssh

// maxAnswer bounds what is taken for one answer of a terminal; after that, keys are keys.
const maxAnswer = 4 << 10

// keyboard tells what somebody types from what their terminal says by itself: programs
// ask terminals for their name and colours, and the answer to a question that a session
// shows comes from everybody who sees it.
type keyboard struct {
	within answer
	length int
}

// answer is the kind of sequence that a byte belongs to (ECMA-48, section 5).
type answer int

const (
	noAnswer answer = iota
	escaped         // behind ESC
	single          // behind ESC O and ESC N: one more
	control         // behind ESC [
	longer          // behind ESC ], P, X, ^ and _: until ST or BEL
	ending          // behind ESC in one of these
)

// typed returns the keys among what came.
func (k *keyboard) typed(p []byte) []byte {
	var keys []byte
	for _, b := range p {
		if k.length++; k.within == noAnswer || b == ctrlC || k.length > maxAnswer {
			k.within, k.length = noAnswer, 0
		}
		switch k.within {
		case noAnswer:
			if b == esc {
				k.within = escaped
				continue
			}
			keys = append(keys, b)
		case escaped:
			k.within = behindESC(b)
		case single:
			k.within = noAnswer
		case control:
			if b >= '@' && b <= '~' {
				k.within = noAnswer
			}
		case longer:
			switch b {
			case esc:
				k.within = ending
			case bel:
				k.within = noAnswer
			}
		case ending:
			k.within = noAnswer
			if b != '\\' {
				k.within = behindESC(b)
			}
		}
	}
	return keys
}

const (
	bel = 0x07
	esc = 0x1b
)

// behindESC is what the byte behind ESC begins.
func behindESC(b byte) answer {
	switch b {
	case esc:
		return escaped
	case '[':
		return control
	case 'O', 'N':
		return single
	case ']', 'P', 'X', '^', '_':
		return longer
	}
	return noAnswer
}
