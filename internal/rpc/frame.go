package rpc

import (
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"teleport/internal/fault"
)

// MaxFrame is a limit for ReadFrame that fits every message of package proxy/v1.
const MaxFrame = 16 << 10

// WriteFrame writes m with a 4-byte big-endian length before it, in one Write.
func WriteFrame(w io.Writer, m proto.Message) error {
	size := proto.Size(m)
	buf := make([]byte, 4, 4+size)
	buf, err := proto.MarshalOptions{}.MarshalAppend(buf, m)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if uint64(len(buf)-4) > 1<<31 {
		return fault.Limit("frame of %d bytes is too long", len(buf)-4)
	}
	binary.BigEndian.PutUint32(buf, uint32(len(buf)-4))
	if _, err := w.Write(buf); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// ReadFrame reads one frame of at most limit bytes into m and not a byte more
// from r. Deadlines are the caller's affair.
func ReadFrame(r io.Reader, m proto.Message, limit int) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if limit < 0 || uint64(n) > uint64(limit) {
		return fault.Limit("frame of %d bytes, at most %d are allowed", n, limit)
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read frame: %w", err)
	}
	if err := proto.Unmarshal(buf, m); err != nil {
		return fault.Invalid("frame is not a %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}
