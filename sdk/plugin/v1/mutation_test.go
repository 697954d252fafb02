package pluginv1_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// specimen has one of everything that can break. Field and enum types are
// named by number in a descriptor: 3 is int64, 9 string, 11 a message, 12
// bytes, 14 an enum; label 1 is one value, 3 many.
const specimen = `
	name: "specimen.proto"  package: "specimen"  syntax: "proto3"  options { go_package: "example.test/specimen" }
	enum_type {
		name: "Shape"
		value { name: "ANY" number: 0 }
		value { name: "ROUND" number: 1 }
		reserved_range { start: 5 end: 7 }
		reserved_name: "SQUARE"
	}
	message_type {
		name: "Disk"
		field { name: "id" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING json_name: "id" }
		field { name: "size_bytes" number: 2 label: LABEL_OPTIONAL type: TYPE_INT64 json_name: "sizeBytes" }
		field { name: "shape" number: 3 label: LABEL_OPTIONAL type: TYPE_ENUM type_name: ".specimen.Shape" json_name: "shape" }
		field { name: "marks" number: 4 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".specimen.Disk.MarksEntry" json_name: "marks" }
		field { name: "parts" number: 5 label: LABEL_REPEATED type: TYPE_INT64 json_name: "parts" }
		field { name: "path" number: 6 label: LABEL_OPTIONAL type: TYPE_STRING oneof_index: 0 json_name: "path" }
		field { name: "url" number: 7 label: LABEL_OPTIONAL type: TYPE_STRING oneof_index: 0 json_name: "url" }
		oneof_decl { name: "place" }
		reserved_range { start: 10 end: 20 }
		reserved_name: "wwn"
		nested_type {
			name: "MarksEntry"
			field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING json_name: "key" }
			field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_BYTES json_name: "value" }
			options { map_entry: true }
		}
		nested_type { name: "Label" field { name: "text" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING json_name: "text" } }
	}
	message_type { name: "Other" }
	service {
		name: "Disks"
		method { name: "List" input_type: ".specimen.Other" output_type: ".specimen.Disk" server_streaming: true }
		method { name: "Write" input_type: ".specimen.Disk" output_type: ".specimen.Other" client_streaming: true }
		method { name: "Open" input_type: ".specimen.Disk" output_type: ".specimen.Disk" }
	}`

type fileProto = descriptorpb.FileDescriptorProto

func parseSpecimen(t *testing.T) *fileProto {
	t.Helper()
	fd := new(fileProto)
	if err := prototext.Unmarshal([]byte(specimen), fd); err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestEveryBreakIsFound makes each kind of breaking change and wants to read
// of it.
func TestEveryBreakIsFound(t *testing.T) {
	disk := func(f *fileProto) *descriptorpb.DescriptorProto { return f.MessageType[0] }
	field := func(f *fileProto, i int) *descriptorpb.FieldDescriptorProto { return disk(f).Field[i] }
	method := func(f *fileProto, i int) *descriptorpb.MethodDescriptorProto { return f.Service[0].Method[i] }
	for want, change := range map[string]func(f *fileProto){
		"package was specimen and is other": func(f *fileProto) { rename(f, ".specimen.", ".other."); f.Package = proto.String("other") },
		"syntax was proto3 and is proto2":   func(f *fileProto) { f.Syntax = proto.String("proto2") },
		"Go package was example.test/specimen and is elsewhere": func(f *fileProto) {
			f.Options.GoPackage = proto.String("elsewhere")
		},
		"message specimen.Disk.Label is gone": func(f *fileProto) { disk(f).NestedType = disk(f).NestedType[:1] },
		"field specimen.Disk.size_bytes is gone": func(f *fileProto) {
			disk(f).Field = slices.Delete(disk(f).Field, 1, 2)
		},
		"field specimen.Disk.id is gone": func(f *fileProto) { // reserving it does not help a plugin that sends it
			disk(f).Field = disk(f).Field[1:]
			disk(f).ReservedName = append(disk(f).ReservedName, "id")
			disk(f).ReservedRange = append(disk(f).ReservedRange, &descriptorpb.DescriptorProto_ReservedRange{Start: proto.Int32(1), End: proto.Int32(2)})
		},
		"size_bytes: number was 2 and is 30": func(f *fileProto) { field(f, 1).Number = proto.Int32(30) },
		"size_bytes: name was size_bytes and is length": func(f *fileProto) {
			field(f, 1).Name = proto.String("length")
		},
		"size_bytes: JSON name was sizeBytes and is size": func(f *fileProto) { field(f, 1).JsonName = proto.String("size") },
		"size_bytes: type was int64 and is uint64":        func(f *fileProto) { field(f, 1).Type = descriptorpb.FieldDescriptorProto_TYPE_UINT64.Enum() },
		"id: type was string and is bytes":                func(f *fileProto) { field(f, 0).Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum() },
		"shape: type was enum specimen.Shape and is message specimen.Other": func(f *fileProto) {
			field(f, 2).Type, field(f, 2).TypeName = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), proto.String(".specimen.Other")
		},
		"marks: type was map<string, bytes> and is map<string, string>": func(f *fileProto) {
			disk(f).NestedType[0].Field[1].Type = descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum()
		},
		"id: cardinality was optional and is repeated":    func(f *fileProto) { field(f, 0).Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum() },
		"parts: cardinality was repeated and is optional": func(f *fileProto) { field(f, 4).Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum() },
		"parts: packing was true and is false": func(f *fileProto) {
			field(f, 4).Options = &descriptorpb.FieldOptions{Packed: proto.Bool(false)}
		},
		"size_bytes: presence was false and is true": func(f *fileProto) {
			field(f, 1).Proto3Optional, field(f, 1).OneofIndex = proto.Bool(true), proto.Int32(1)
			disk(f).OneofDecl = append(disk(f).OneofDecl, &descriptorpb.OneofDescriptorProto{Name: proto.String("_size_bytes")})
		},
		"url: oneof was place and is ": func(f *fileProto) { field(f, 6).OneofIndex = nil },
		"path: oneof was place and is spot": func(f *fileProto) {
			disk(f).OneofDecl[0].Name = proto.String("spot")
		},
		"Disk: number 15 was reserved and is not": func(f *fileProto) { disk(f).ReservedRange[0].End = proto.Int32(15) },
		"Disk: number 10 was reserved and is not": func(f *fileProto) { disk(f).ReservedRange[0].Start = proto.Int32(11) },
		"Disk: name wwn was reserved and is not":  func(f *fileProto) { disk(f).ReservedName = nil },
		"enum specimen.Shape is gone": func(f *fileProto) {
			f.EnumType[0].Name = proto.String("Form")
			field(f, 2).TypeName = proto.String(".specimen.Form")
		},
		"enum value specimen.ROUND is gone":                func(f *fileProto) { f.EnumType[0].Value = f.EnumType[0].Value[:1] },
		"specimen.ROUND: number was 1 and is 2":            func(f *fileProto) { f.EnumType[0].Value[1].Number = proto.Int32(2) },
		"Shape: number 7 was reserved and is not":          func(f *fileProto) { f.EnumType[0].ReservedRange[0].End = proto.Int32(6) },
		"Shape: name SQUARE was reserved and is not":       func(f *fileProto) { f.EnumType[0].ReservedName = nil },
		"service specimen.Disks is gone":                   func(f *fileProto) { f.Service[0].Name = proto.String("Drives") },
		"method specimen.Disks.Open is gone":               func(f *fileProto) { f.Service[0].Method = f.Service[0].Method[:2] },
		"Open: request was specimen.Disk and is":           func(f *fileProto) { method(f, 2).InputType = proto.String(".specimen.Other") },
		"Open: answer was specimen.Disk and is":            func(f *fileProto) { method(f, 2).OutputType = proto.String(".specimen.Other") },
		"List: streaming of answers was true and is false": func(f *fileProto) { method(f, 0).ServerStreaming = nil },
		"Write: streaming of requests was true and is fal": func(f *fileProto) { method(f, 1).ClientStreaming = nil },
		"Open: streaming of requests was false and is tru": func(f *fileProto) { method(f, 2).ClientStreaming = proto.Bool(true) },
	} {
		old, now := parseSpecimen(t), parseSpecimen(t)
		change(now)
		faults := breaks(fileOf(t, old), fileOf(t, now))
		if !slices.ContainsFunc(faults, func(fault string) bool { return strings.Contains(fault, want) }) {
			t.Errorf("nothing says %q, but:\n  %s", want, strings.Join(faults, "\n  "))
		}
	}
}

// rename moves every reference from one package to another.
func rename(f *fileProto, from, to string) {
	moved := func(name *string) *string {
		if name == nil {
			return nil
		}
		return proto.String(strings.Replace(*name, from, to, 1))
	}
	for _, m := range f.MessageType {
		for _, field := range m.Field {
			field.TypeName = moved(field.TypeName)
		}
	}
	for _, s := range f.Service {
		for _, m := range s.Method {
			m.InputType, m.OutputType = moved(m.InputType), moved(m.OutputType)
		}
	}
}

// TestGainsBreakNothing adds one of everything.
func TestGainsBreakNothing(t *testing.T) {
	old, now := parseSpecimen(t), parseSpecimen(t)
	now.EnumType[0].Value = append(now.EnumType[0].Value, &descriptorpb.EnumValueDescriptorProto{Name: proto.String("FLAT"), Number: proto.Int32(2)})
	disk := now.MessageType[0]
	disk.Field = append(disk.Field, &descriptorpb.FieldDescriptorProto{
		Name: proto.String("serial"), Number: proto.Int32(8), JsonName: proto.String("serial"),
		Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(),
	})
	disk.ReservedName = append(disk.ReservedName, "naa")
	disk.ReservedRange = []*descriptorpb.DescriptorProto_ReservedRange{ // the same, in two parts, and more
		{Start: proto.Int32(10), End: proto.Int32(15)}, {Start: proto.Int32(15), End: proto.Int32(30)},
	}
	now.MessageType = append(now.MessageType, &descriptorpb.DescriptorProto{Name: proto.String("Pool")})
	now.Service[0].Method = append(now.Service[0].Method, &descriptorpb.MethodDescriptorProto{
		Name: proto.String("Pools"), InputType: proto.String(".specimen.Other"), OutputType: proto.String(".specimen.Pool"),
	})
	if faults := breaks(fileOf(t, old), fileOf(t, now)); len(faults) > 0 {
		t.Errorf("what only gained is said to break:\n  %s", strings.Join(faults, "\n  "))
	}
	if gained := breaks(fileOf(t, now), fileOf(t, old)); len(gained) != 6 {
		t.Errorf("of what was gained, this is seen:\n  %s", strings.Join(gained, "\n  "))
	}
}

// TestNoFieldOfTheProtocolIsOutOfSight renumbers each field and renames each
// method of plugin.proto in turn.
func TestNoFieldOfTheProtocolIsOutOfSight(t *testing.T) {
	whole := protodesc.ToFileDescriptorProto(pluginv1.File_plugin_proto)
	seen := 0
	check := func(name string, undo func()) {
		t.Helper()
		if len(breaks(pluginv1.File_plugin_proto, fileOf(t, whole))) == 0 {
			t.Errorf("a change of %s is not seen", name)
		}
		undo()
		seen++
	}
	for _, m := range whole.MessageType {
		for _, f := range m.Field {
			was := f.GetNumber()
			f.Number = proto.Int32(1000)
			check(m.GetName()+"."+f.GetName(), func() { f.Number = proto.Int32(was) })
		}
	}
	for _, m := range whole.Service[0].Method {
		was := m.GetName()
		m.Name = proto.String(was + "2")
		check(was, func() { m.Name = proto.String(was) })
	}
	if faults := breaks(pluginv1.File_plugin_proto, fileOf(t, whole)); len(faults) > 0 || seen < 100 {
		t.Errorf("after %d changes were undone: %v", seen, faults)
	}
}
