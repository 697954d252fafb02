package pluginv1_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

var record = flag.Bool("record", false, "record what the protocol has gained; go generate does")

// promised is the FileDescriptorSet of what plugins and hosts may rely on.
var promised = filepath.Join("testdata", "promised.binpb")

// TestProtocolKeepsItsPromises holds plugin.proto against everything that was
// ever promised in it. What is new has to be recorded, and is a promise then.
func TestProtocolKeepsItsPromises(t *testing.T) {
	now := pluginv1.File_plugin_proto
	old := readPromised(t)
	if faults := breaks(old, now); len(faults) > 0 {
		t.Fatalf("plugin.proto breaks plugins that exist:\n  %s\nProtocol 1 only gains: leave what there is and add beside it. "+
			"What cannot be said that way is protocol 2, in a package of its own. "+
			"Only something that nobody has ever been given may be forgotten: git checkout sdk/plugin/v1/%s",
			strings.Join(faults, "\n  "), promised)
	}
	gained := breaks(now, old) // what the promise lacks, seen from today
	if len(gained) == 0 {
		return
	}
	if !*record {
		t.Fatalf("plugin.proto has gained something that is not recorded yet; go generate ./sdk/plugin/v1 does:\n  %s", strings.ReplaceAll(strings.Join(gained, "\n  "), " is gone", " is new"))
	}
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(now)}}
	doc, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(promised, doc, 0o644); err != nil {
		t.Fatal(err)
	}
}

func readPromised(t *testing.T) protoreflect.FileDescriptor {
	t.Helper()
	doc, err := os.ReadFile(promised)
	if err != nil {
		t.Fatal(err)
	}
	set := new(descriptorpb.FileDescriptorSet)
	if err := proto.Unmarshal(doc, set); err != nil || len(set.GetFile()) != 1 {
		t.Fatalf("%s has %d files, %v", promised, len(set.GetFile()), err)
	}
	return fileOf(t, set.GetFile()[0])
}

func fileOf(t *testing.T, fd *descriptorpb.FileDescriptorProto) protoreflect.FileDescriptor {
	t.Helper()
	file, err := protodesc.NewFile(fd, nil)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// comparison gathers how a file breaks an older one.
type comparison struct{ faults []string }

// breaks lists how programs that were built with old would not understand now,
// or would not compile with it.
func breaks(old, now protoreflect.FileDescriptor) []string {
	c := new(comparison)
	c.same(old.Path(), "package", old.Package(), now.Package())
	c.same(old.Path(), "syntax", old.Syntax(), now.Syntax())
	c.same(old.Path(), "Go package", goPackage(old), goPackage(now))
	c.messages(old.Messages(), now.Messages())
	c.enums(old.Enums(), now.Enums())
	for was := range all(old.Services()) {
		is := now.Services().ByName(was.Name())
		if is == nil {
			c.gone("service", was)
			continue
		}
		for was := range all(was.Methods()) {
			c.method(was, is.Methods().ByName(was.Name()))
		}
	}
	return c.faults
}

func goPackage(file protoreflect.FileDescriptor) string {
	return protodesc.ToFileDescriptorProto(file).GetOptions().GetGoPackage()
}

// list is how protoreflect lists declarations of every kind.
type list[D any] interface {
	Len() int
	Get(int) D
}

func all[D any](l list[D]) func(func(D) bool) {
	return func(yield func(D) bool) {
		for i := range l.Len() {
			if !yield(l.Get(i)) {
				return
			}
		}
	}
}

func (c *comparison) add(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

func (c *comparison) gone(kind string, was protoreflect.Descriptor) {
	c.add("%s %s is gone", kind, was.FullName())
}

func (c *comparison) same(where any, what string, was, is any) {
	if was != is {
		c.add("%v: %s was %v and is %v", where, what, was, is)
	}
}

func (c *comparison) method(was, is protoreflect.MethodDescriptor) {
	if is == nil {
		c.gone("method", was)
		return
	}
	c.same(was.FullName(), "request", was.Input().FullName(), is.Input().FullName())
	c.same(was.FullName(), "answer", was.Output().FullName(), is.Output().FullName())
	c.same(was.FullName(), "streaming of requests", was.IsStreamingClient(), is.IsStreamingClient())
	c.same(was.FullName(), "streaming of answers", was.IsStreamingServer(), is.IsStreamingServer())
}

func (c *comparison) messages(old, now protoreflect.MessageDescriptors) {
	for was := range all(old) {
		is := now.ByName(was.Name())
		if is == nil {
			c.gone("message", was)
			continue
		}
		c.message(was, is)
	}
}

func (c *comparison) message(was, is protoreflect.MessageDescriptor) {
	for field := range all(was.Fields()) {
		c.field(field, is)
	}
	c.reserved(was, is)
	c.messages(was.Messages(), is.Messages())
	c.enums(was.Enums(), is.Enums())
}

// field finds a field again by its number, which is all that is on the wire.
func (c *comparison) field(was protoreflect.FieldDescriptor, in protoreflect.MessageDescriptor) {
	is := in.Fields().ByNumber(was.Number())
	if is == nil {
		if moved := in.Fields().ByName(was.Name()); moved != nil {
			c.same(was.FullName(), "number", was.Number(), moved.Number())
			return
		}
		c.gone("field", was)
		return
	}
	c.same(was.FullName(), "name", was.Name(), is.Name())
	c.same(was.FullName(), "JSON name", was.JSONName(), is.JSONName())
	c.same(was.FullName(), "type", typeOf(was), typeOf(is))
	c.same(was.FullName(), "cardinality", was.Cardinality(), is.Cardinality())
	c.same(was.FullName(), "presence", was.HasPresence(), is.HasPresence())
	c.same(was.FullName(), "packing", was.IsPacked(), is.IsPacked())
	c.same(was.FullName(), "oneof", oneofOf(was), oneofOf(is))
}

// typeOf names the type of a field, or of a map's keys and values.
func typeOf(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return fmt.Sprintf("map<%s, %s>", typeOf(f.MapKey()), typeOf(f.MapValue()))
	case f.Message() != nil:
		return f.Kind().String() + " " + string(f.Message().FullName())
	case f.Enum() != nil:
		return f.Kind().String() + " " + string(f.Enum().FullName())
	}
	return f.Kind().String()
}

// oneofOf names the group of which a field excludes the others.
func oneofOf(f protoreflect.FieldDescriptor) protoreflect.Name {
	if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
		return o.Name()
	}
	return ""
}

// reserved sees to it that what must never be used again stays unused. That a
// declared field is not reserved is protoc's business.
func (c *comparison) reserved(was, is protoreflect.MessageDescriptor) {
	var now []span
	for i := range is.ReservedRanges().Len() {
		r := is.ReservedRanges().Get(i)
		now = append(now, span{int64(r[0]), int64(r[1])})
	}
	for i := range was.ReservedRanges().Len() {
		r := was.ReservedRanges().Get(i)
		c.stillReserved(was, span{int64(r[0]), int64(r[1])}, now)
	}
	c.namesReserved(was, was.ReservedNames(), is.ReservedNames())
}

// span is a range of numbers without its end.
type span struct{ from, end int64 }

// stillReserved follows old through the spans of now.
func (c *comparison) stillReserved(where protoreflect.Descriptor, old span, now []span) {
	for n := old.from; n < old.end; {
		i := slices.IndexFunc(now, func(s span) bool { return s.from <= n && n < s.end })
		if i < 0 {
			c.add("%s: number %d was reserved and is not", where.FullName(), n)
			return
		}
		n = now[i].end
	}
}

func (c *comparison) namesReserved(where protoreflect.Descriptor, was, is protoreflect.Names) {
	for i := range was.Len() {
		if !is.Has(was.Get(i)) {
			c.add("%s: name %s was reserved and is not", where.FullName(), was.Get(i))
		}
	}
}

func (c *comparison) enums(old, now protoreflect.EnumDescriptors) {
	for was := range all(old) {
		is := now.ByName(was.Name())
		if is == nil {
			c.gone("enum", was)
			continue
		}
		c.same(was.FullName(), "closed", was.IsClosed(), is.IsClosed())
		for value := range all(was.Values()) {
			c.value(value, is)
		}
		c.valuesReserved(was, is)
	}
}

// valuesReserved is reserved for an enum, whose ranges include their ends.
func (c *comparison) valuesReserved(was, is protoreflect.EnumDescriptor) {
	var now []span
	for i := range is.ReservedRanges().Len() {
		r := is.ReservedRanges().Get(i)
		now = append(now, span{int64(r[0]), int64(r[1]) + 1})
	}
	for i := range was.ReservedRanges().Len() {
		r := was.ReservedRanges().Get(i)
		c.stillReserved(was, span{int64(r[0]), int64(r[1]) + 1}, now)
	}
	c.namesReserved(was, was.ReservedNames(), is.ReservedNames())
}

// value finds an enum's value by its name: two names may have one number.
func (c *comparison) value(was protoreflect.EnumValueDescriptor, in protoreflect.EnumDescriptor) {
	is := in.Values().ByName(was.Name())
	if is == nil {
		c.gone("enum value", was)
		return
	}
	c.same(was.FullName(), "number", was.Number(), is.Number())
}
