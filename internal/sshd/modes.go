package sshd

import "golang.org/x/sys/unix"

// Special characters by opcode (RFC 4254 section 8).
var controlChars = map[byte]int{
	1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2, 8: unix.VSTART,
	9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 16: unix.VSWTC, 18: unix.VDISCARD,
}

// Flags by opcode.
var (
	inputFlags = map[byte]uint32{
		30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR, 35: unix.IGNCR, 36: unix.ICRNL,
		37: unix.IUCLC, 38: unix.IXON, 39: unix.IXANY, 40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8,
	}
	localFlags = map[byte]uint32{
		50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE, 55: unix.ECHOK, 56: unix.ECHONL,
		57: unix.NOFLSH, 58: unix.TOSTOP, 59: unix.IEXTEN, 60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
	}
	outputFlags = map[byte]uint32{
		70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET,
	}
	controlFlags = map[byte]uint32{92: unix.PARENB, 93: unix.PARODD}
)

// disabledChar is how the protocol says that a special character is off.
const disabledChar = 255

// setModes applies the client's modes to the terminal; unknown ones are passed
// over.
func setModes(fd int, modes []mode) error {
	if len(modes) == 0 {
		return nil
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	for _, m := range modes {
		applyMode(t, m)
	}
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

func applyMode(t *unix.Termios, m mode) {
	if i, ok := controlChars[m.op]; ok {
		t.Cc[i] = byte(m.arg)
		if m.arg == disabledChar {
			t.Cc[i] = 0
		}
		return
	}
	setFlag(&t.Iflag, inputFlags[m.op], m.arg)
	setFlag(&t.Lflag, localFlags[m.op], m.arg)
	setFlag(&t.Oflag, outputFlags[m.op], m.arg)
	setFlag(&t.Cflag, controlFlags[m.op], m.arg)
	// Opcodes 90 and 91 choose the character size.
	if m.op == 90 && m.arg != 0 {
		t.Cflag = t.Cflag&^unix.CSIZE | unix.CS7
	}
	if m.op == 91 && m.arg != 0 {
		t.Cflag = t.Cflag&^unix.CSIZE | unix.CS8
	}
}

func setFlag(field *uint32, flag, on uint32) {
	if on == 0 {
		*field &^= flag
		return
	}
	*field |= flag
}
