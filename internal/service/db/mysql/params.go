package mysql

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
)

const (
	// maxParameters bounds those of one statement that are recorded, maxParameter the
	// text of one.
	maxParameters = 256
	maxParameter  = 1 << 10
)

// Types of the binary protocol (enum_field_types).
const (
	typeTiny      = 0x01
	typeShort     = 0x02
	typeLong      = 0x03
	typeFloat     = 0x04
	typeDouble    = 0x05
	typeNull      = 0x06
	typeTimestamp = 0x07
	typeLongLong  = 0x08
	typeInt24     = 0x09
	typeDate      = 0x0a
	typeTime      = 0x0b
	typeDatetime  = 0x0c
	typeYear      = 0x0d
	typeBit       = 0x10
	unsigned      = 0x80
)

// values reads the parameters of COM_STMT_EXECUTE as far as they are there. The types come
// with the first execution, and again when they change.
func (st *statement) values(p []byte) (out []string, ok bool) {
	nulls := (st.params + 7) / 8
	if len(p) < nulls+1 {
		return nil, false
	}
	null, bound := p[:nulls], p[nulls]
	p = p[nulls+1:]
	if bound == 1 {
		if len(p) < 2*st.params {
			return nil, false
		}
		st.types = append(st.types[:0], p[:2*st.params]...)
		p = p[2*st.params:]
	}
	if len(st.types) < 2*st.params {
		return nil, false
	}
	for i := range st.params {
		var s string
		switch {
		case null[i/8]&(1<<(i%8)) != 0:
			s = "NULL"
		case st.long[i]:
			s = "[sent ahead]"
		default:
			if s, p, ok = value(p, st.types[2*i], st.types[2*i+1]&unsigned != 0); !ok {
				return out, false
			}
		}
		if i < maxParameters {
			out = append(out, s)
		}
	}
	if st.params > maxParameters {
		out = append(out, fmt.Sprintf("...[truncated: %d of %d parameters]", maxParameters, st.params))
	}
	return out, true
}

// value takes a value as people read it.
func value(p []byte, typ byte, isUnsigned bool) (s string, rest []byte, ok bool) {
	width := 0
	switch typ {
	case typeNull:
		return "NULL", p, true
	case typeTiny:
		width = 1
	case typeShort, typeYear:
		width = 2
	case typeLong, typeInt24, typeFloat:
		width = 4
	case typeLongLong, typeDouble:
		width = 8
	case typeDate, typeDatetime, typeTimestamp, typeTime:
		if len(p) < 1 || len(p) < 1+int(p[0]) {
			return "", nil, false
		}
		n := int(p[0])
		return moment(p[1:1+n], typ == typeTime), p[1+n:], true
	default:
		b, rest, ok := lenencBytes(p)
		if !ok {
			return "", nil, false
		}
		return bytesText(b, typ), rest, true
	}
	if len(p) < width {
		return "", nil, false
	}
	var b [8]byte
	copy(b[:], p[:width])
	n := binary.LittleEndian.Uint64(b[:])
	switch {
	case typ == typeFloat:
		s = strconv.FormatFloat(float64(math.Float32frombits(uint32(n))), 'g', -1, 32)
	case typ == typeDouble:
		s = strconv.FormatFloat(math.Float64frombits(n), 'g', -1, 64)
	case isUnsigned:
		s = strconv.FormatUint(n, 10)
	default:
		s = strconv.FormatInt(int64(n)<<(64-8*width)>>(64-8*width), 10)
	}
	return s, p[width:], true
}

func bytesText(b []byte, typ byte) string {
	more := ""
	if len(b) > maxParameter {
		more = fmt.Sprintf("...[truncated: %d of %d bytes]", maxParameter, len(b))
		b = b[:maxParameter]
	}
	if typ != typeBit && printable(b) {
		return string(b) + more
	}
	return "0x" + hex.EncodeToString(b) + more
}

// moment writes a date or a time: a time of day may be of several days, and negative.
func moment(b []byte, isTime bool) string {
	micro := func(at int) string {
		if len(b) < at+4 {
			return ""
		}
		return fmt.Sprintf(".%06d", binary.LittleEndian.Uint32(b[at:]))
	}
	switch {
	case isTime && len(b) >= 8:
		sign := ""
		if b[0] == 1 {
			sign = "-"
		}
		return fmt.Sprintf("%s%02d:%02d:%02d%s", sign, uint64(binary.LittleEndian.Uint32(b[1:]))*24+uint64(b[5]), b[6], b[7], micro(8))
	case isTime:
		return "00:00:00"
	case len(b) >= 7:
		return fmt.Sprintf("%04d-%02d-%02d %02d:%02d:%02d%s", binary.LittleEndian.Uint16(b), b[2], b[3], b[4], b[5], b[6], micro(7))
	case len(b) >= 4:
		return fmt.Sprintf("%04d-%02d-%02d", binary.LittleEndian.Uint16(b), b[2], b[3])
	}
	return "0000-00-00"
}
