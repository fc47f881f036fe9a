package cms

import "errors"

// bounded checks that a message is one well-formed BER element (X.690, section 8) with
// nothing after it, not nested too deeply and not made of too many parts. The parser
// converts BER by recursion, which a hostile message could make expensive.
func bounded(message []byte) error {
	w := walker{b: message}
	if err := w.element(0); err != nil {
		return err
	}
	if w.at != len(message) {
		return errors.New("bytes after its end")
	}
	return nil
}

type walker struct {
	b        []byte
	at       int
	elements int
}

var errCut = errors.New("it ends too early")

func (w *walker) next() (byte, error) {
	if w.at >= len(w.b) {
		return 0, errCut
	}
	w.at++
	return w.b[w.at-1], nil
}

// element walks one element and what is inside it.
func (w *walker) element(depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deeply")
	}
	if w.elements++; w.elements > maxElements {
		return errors.New("made of too many parts")
	}
	tag, err := w.next()
	if err != nil {
		return err
	}
	if tag&0x1f == 0x1f {
		return errors.New("a tag of more than one byte")
	}
	length, indefinite, err := w.length()
	if err != nil {
		return err
	}
	constructed := tag&0x20 != 0
	if indefinite {
		if !constructed {
			return errors.New("a value without an end")
		}
		for w.at+2 > len(w.b) || w.b[w.at] != 0 || w.b[w.at+1] != 0 {
			if err := w.element(depth + 1); err != nil {
				return err
			}
		}
		w.at += 2
		return nil
	}
	end := w.at + length
	if end > len(w.b) {
		return errCut
	}
	if !constructed {
		w.at = end
		return nil
	}
	for w.at < end {
		if err := w.element(depth + 1); err != nil {
			return err
		}
	}
	if w.at != end {
		return errors.New("a part is longer than the whole")
	}
	return nil
}

func (w *walker) length() (length int, indefinite bool, err error) {
	first, err := w.next()
	if err != nil || first < 0x80 {
		return int(first), false, err
	}
	n := int(first & 0x7f)
	if n == 0 {
		return 0, true, nil
	}
	if n > 3 {
		return 0, false, errors.New("a length of more than three bytes")
	}
	for range n {
		b, err := w.next()
		if err != nil {
			return 0, false, err
		}
		length = length<<8 | int(b)
	}
	return length, false, nil
}
