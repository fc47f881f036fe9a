package types

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"teleport/internal/fault"
)

// Encode returns the stored form: the protobuf wire form, the same bytes for the
// same content.
func Encode(r Resource) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return nil, fault.New(fault.ErrInvalid, "encode %s %q: %w", r.GetKind(), r.GetMetadata().GetName(), err)
	}
	return b, nil
}

// Decode reads what Encode wrote. It is lenient: content is not validated and
// fields of a newer version are kept, but the bytes must be a message of the kind.
func Decode(kind string, b []byte) (Resource, error) {
	k, ok := row(kind)
	if !ok {
		return nil, fault.Invalid("unknown kind %q", kind)
	}
	r := k.New()
	if err := proto.Unmarshal(b, r); err != nil {
		return nil, fault.New(fault.ErrInvalid, "decode a %s: %w", kind, err)
	}
	if r.GetKind() != kind {
		return nil, fault.Invalid("decode a %s: the bytes are those of a %q", kind, r.GetKind())
	}
	if r.GetMetadata().GetName() == "" {
		return nil, fault.Invalid("decode a %s: it has no name", kind)
	}
	return r, nil
}

// ToAny packs a resource for the generic API.
func ToAny(r Resource) (*anypb.Any, error) {
	a, err := anypb.New(r)
	if err != nil {
		return nil, fault.New(fault.ErrInvalid, "pack %s %q: %w", r.GetKind(), r.GetMetadata().GetName(), err)
	}
	return a, nil
}

// FromAny unpacks a resource. Only messages of kinds in the table are accepted,
// and the message must be that of the kind it names. Content is not validated.
func FromAny(a *anypb.Any) (Resource, error) {
	if a == nil {
		return nil, fault.Invalid("no resource was given")
	}
	name := a.MessageName()
	for _, k := range Kinds() {
		r := k.New()
		if r.ProtoReflect().Descriptor().FullName() != name {
			continue
		}
		if err := proto.Unmarshal(a.GetValue(), r); err != nil {
			return nil, fault.New(fault.ErrInvalid, "unpack a %s: %w", k.Name, err)
		}
		own, ok := row(r.GetKind())
		if !ok || own.New().ProtoReflect().Descriptor().FullName() != name {
			return nil, fault.Invalid("unpack a resource: kind %q is not what the message %s holds", r.GetKind(), name)
		}
		return r, nil
	}
	return nil, fault.Invalid("unpack a resource: unknown message %q", name)
}

// clone returns a deep copy.
func clone(r Resource) Resource {
	if c, ok := proto.Clone(r).(Resource); ok {
		return c
	}
	return r
}

func stringValue(s string) protoreflect.Value { return protoreflect.ValueOfString(s) }

func messageValue(m proto.Message) protoreflect.Value {
	return protoreflect.ValueOfMessage(m.ProtoReflect())
}
