package mongodb

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"math"
	"strconv"
	"time"
)

const (
	// maxDepth is how deep documents are in documents that are looked into; the server
	// takes none that are deeper.
	maxDepth = 200
	masked   = "[masked]"
	cut      = "...[cut]"
)

// printer writes documents as people read them: Extended JSON, relaxed, up to a limit.
type printer struct {
	out   []byte
	limit int
	// secret says that a value at the top is not to be seen, silent that an element is
	// not written at all.
	secret, silent func(key string) bool
}

// full reports whether nothing more is written.
func (p *printer) full() bool { return len(p.out) >= p.limit }

func (p *printer) write(s string) {
	if room := p.limit - len(p.out); len(s) > room {
		if room > 0 {
			p.out = append(append(p.out, s[:room]...), cut...)
			p.limit = 0
		}
		return
	}
	p.out = append(p.out, s...)
}

// document writes one; more is called before its end.
func (p *printer) document(doc []byte, depth int, array bool, more func(first bool)) {
	open, end := "{", "}"
	if array {
		open, end = "[", "]"
	}
	p.write(open)
	first := true
	err := elements(doc, func(e element) bool {
		if depth == 0 && p.silent != nil && p.silent(e.key) {
			return true
		}
		if !first {
			p.write(", ")
		}
		first = false
		if !array {
			p.quote(e.key)
			p.write(": ")
		}
		if depth == 0 && p.secret != nil && p.secret(e.key) {
			p.quote(masked)
		} else {
			p.value(e, depth)
		}
		return !p.full()
	})
	if err != nil {
		p.write("[not BSON]")
	}
	if more != nil {
		more(first)
	}
	p.write(end)
}

func (p *printer) quote(s string) {
	if room := p.limit - len(p.out); len(s) > room {
		p.write(`"` + s)
		return
	}
	p.write(strconv.Quote(s))
}

// clip is as much of a text as can be written at most.
func (p *printer) clip(b []byte) string { return string(b[:min(len(b), p.limit+1)]) }

// wrap writes a value that JSON has no form of.
func (p *printer) wrap(kind, value string) {
	p.write(`{"$` + kind + `": `)
	p.quote(value)
	p.write("}")
}

func (p *printer) value(e element, depth int) {
	switch e.kind {
	case typeDocument, typeArray:
		if depth >= maxDepth {
			p.write("{...}")
			return
		}
		p.document(e.value, depth+1, e.kind == typeArray, nil)
	case typeDouble:
		f := math.Float64frombits(binary.LittleEndian.Uint64(e.value))
		if math.IsNaN(f) || math.IsInf(f, 0) {
			p.wrap("numberDouble", strconv.FormatFloat(f, 'g', -1, 64))
			return
		}
		p.write(strconv.FormatFloat(f, 'g', -1, 64))
	case typeString, typeSymbol:
		p.quote(p.clip(e.value[4 : len(e.value)-1]))
	case typeInt32, typeInt64:
		p.write(strconv.FormatInt(e.number(), 10))
	case typeBool:
		p.write(strconv.FormatBool(e.value[0] == 1))
	case typeNull:
		p.write("null")
	case typeObjectID:
		p.wrap("oid", hex.EncodeToString(e.value))
	case typeDate:
		ms := int64(binary.LittleEndian.Uint64(e.value))
		p.wrap("date", time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	case typeTimestamp:
		p.wrap("timestamp", strconv.FormatUint(uint64(binary.LittleEndian.Uint32(e.value[4:])), 10)+":"+strconv.FormatUint(uint64(binary.LittleEndian.Uint32(e.value)), 10))
	case typeBinary:
		// What cannot be printed is shown as far as it helps to recognise it.
		b := e.bin()
		value := base64.StdEncoding.EncodeToString(b[:min(len(b), 48)])
		if len(b) > 48 {
			value += cut
		}
		p.wrap("binary", value)
	case typeCode:
		p.wrap("code", p.clip(e.value[4:len(e.value)-1]))
	case typeScope:
		p.wrap("code", p.clip(e.value[8:]))
	case typeRegex:
		p.wrap("regularExpression", p.clip(e.value[:len(e.value)-1]))
	case typeDecimal:
		p.wrap("numberDecimal", "0x"+hex.EncodeToString(e.value))
	case typePointer:
		p.wrap("dbPointer", p.clip(e.value[4:len(e.value)-13]))
	case typeUndefined:
		p.wrap("undefined", "")
	case typeMinKey:
		p.wrap("minKey", "")
	case typeMaxKey:
		p.wrap("maxKey", "")
	}
}
