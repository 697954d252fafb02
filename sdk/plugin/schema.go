package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/sdk"
)

// MaxSettings is the largest configuration of one endpoint, in bytes.
const MaxSettings = 1 << 20

// Schema is what can be configured, read from the author's struct.
type Schema struct {
	Fields []Field `json:"fields"`
}

// Field is one thing that can be configured.
type Field struct {
	Name     string   `json:"name,omitempty"`
	Type     string   `json:"type"` // string, boolean, integer, number, list, map, object
	Help     string   `json:"help,omitempty"`
	Required bool     `json:"required,omitempty"`
	Secret   bool     `json:"secret,omitempty"`
	Enum     []string `json:"enum,omitempty"`
	// Fields are those of an object; Items describes what is in a list or map.
	Fields []Field `json:"fields,omitempty"`
	Items  *Field  `json:"items,omitempty"`
}

// Redacted is what stands in the place of a secret.
const Redacted = "********"

// SchemaOf reads the schema of a configuration, a pointer to a struct or nil.
func SchemaOf(config any) (Schema, error) {
	if config == nil {
		return Schema{Fields: []Field{}}, nil
	}
	t := reflect.TypeOf(config)
	if t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct || reflect.ValueOf(config).IsNil() {
		return Schema{}, fmt.Errorf("a configuration is a pointer to a struct, not %T", config)
	}
	fields, err := structFields(t.Elem(), 0)
	return Schema{Fields: fields}, err
}

// maxNesting bounds structs within structs; a type that contains itself has no
// schema.
const maxNesting = 8

func structFields(t reflect.Type, depth int) ([]Field, error) {
	if depth > maxNesting {
		return nil, fmt.Errorf("type %s is nested deeper than %d", t, maxNesting)
	}
	fields := []Field{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		if f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct {
			inner, err := structFields(f.Type, depth+1)
			if err != nil {
				return nil, err
			}
			fields = append(fields, inner...)
			continue
		}
		if name == "" {
			return nil, fmt.Errorf("field %s of %s has no json tag", f.Name, t)
		}
		field, err := fieldOf(f.Type, depth)
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", name, err)
		}
		field.Name, field.Help = name, f.Tag.Get("help")
		field.Required, field.Secret = f.Tag.Get("required") == "true", f.Tag.Get("secret") == "true"
		if enum := f.Tag.Get("enum"); enum != "" {
			field.Enum = strings.Split(enum, ",")
		}
		fields = append(fields, field)
	}
	return fields, nil
}

func fieldOf(t reflect.Type, depth int) (Field, error) {
	switch t.Kind() {
	case reflect.Pointer:
		return fieldOf(t.Elem(), depth)
	case reflect.String:
		return Field{Type: "string"}, nil
	case reflect.Bool:
		return Field{Type: "boolean"}, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return Field{Type: "integer"}, nil
	case reflect.Float32, reflect.Float64:
		return Field{Type: "number"}, nil
	case reflect.Struct:
		fields, err := structFields(t, depth+1)
		return Field{Type: "object", Fields: fields}, err
	case reflect.Slice, reflect.Map:
		if t.Kind() == reflect.Map && t.Key().Kind() != reflect.String {
			break
		}
		items, err := fieldOf(t.Elem(), depth+1)
		kind := map[reflect.Kind]string{reflect.Slice: "list", reflect.Map: "map"}[t.Kind()]
		return Field{Type: kind, Items: &items}, err
	}
	return Field{}, fmt.Errorf("type %s cannot be configured", t)
}

// Validate checks settings against the schema. The error wraps sdk.ErrInvalid
// and names every field at fault, but no value: it may be a secret.
func (s Schema) Validate(settings json.RawMessage) error {
	if len(settings) > MaxSettings {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "settings of %d bytes, at most %d are possible", len(settings), MaxSettings)
	}
	value, err := decode(settings)
	if err != nil {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "the settings are not JSON")
	}
	if value == nil {
		value = map[string]any{}
	}
	object, ok := value.(map[string]any)
	if !ok {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "the settings are not a JSON object")
	}
	var faults []string
	checkObject(s.Fields, object, "", func(path, fault string) { faults = append(faults, path+" "+fault) })
	if len(faults) == 0 {
		return nil
	}
	slices.Sort(faults)
	return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "settings: %s", strings.Join(faults, "; "))
}

func decode(settings json.RawMessage) (any, error) {
	if len(bytes.TrimSpace(settings)) == 0 {
		return nil, nil
	}
	var value any
	dec := json.NewDecoder(bytes.NewReader(settings))
	dec.UseNumber()
	if err := dec.Decode(&value); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return value, nil
}

func checkObject(fields []Field, object map[string]any, path string, fault func(path, fault string)) {
	known := make(map[string]bool)
	for _, f := range fields {
		known[f.Name] = true
		value, ok := object[f.Name]
		switch {
		case !ok || value == nil || value == "":
			if f.Required {
				fault(path+f.Name, "is required")
			}
		default:
			checkValue(f, value, path+f.Name, fault)
		}
	}
	for name := range object {
		if !known[name] {
			fault(path+strconv.Quote(name), "is unknown")
		}
	}
}

func checkValue(f Field, value any, path string, fault func(path, fault string)) {
	ok := false
	switch f.Type {
	case "string":
		var text string
		if text, ok = value.(string); ok && len(f.Enum) > 0 && !slices.Contains(f.Enum, text) {
			fault(path, "is none of "+strings.Join(f.Enum, ", "))
		}
	case "boolean":
		_, ok = value.(bool)
	case "integer":
		var n json.Number
		if n, ok = value.(json.Number); ok {
			_, err := n.Int64()
			ok = err == nil
		}
	case "number":
		var n json.Number
		if n, ok = value.(json.Number); ok {
			x, err := n.Float64()
			ok = err == nil && !math.IsInf(x, 0)
		}
	case "object":
		var object map[string]any
		if object, ok = value.(map[string]any); ok {
			checkObject(f.Fields, object, path+".", fault)
		}
	case "list":
		var list []any
		if list, ok = value.([]any); ok {
			for i, item := range list {
				checkValue(*f.Items, item, fmt.Sprintf("%s[%d]", path, i), fault)
			}
		}
	case "map":
		var object map[string]any
		if object, ok = value.(map[string]any); ok {
			for key, item := range object {
				checkValue(*f.Items, item, path+"."+key, fault)
			}
		}
	}
	if !ok {
		article := "a "
		if strings.ContainsAny(f.Type[:1], "io") {
			article = "an "
		}
		fault(path, "is not "+article+f.Type)
	}
}

// maxFields bounds the fields of a schema that a program describes, those of
// its objects included.
const maxFields = 1000

// sound holds a schema that a program describes against what SchemaOf makes, as
// far as those who use one rely on it. A type that this version does not know is
// none that fits anything, and no reason to refuse the rest.
func (s Schema) sound() error {
	count := 0
	var check func(f Field, named bool, depth int) error
	check = func(f Field, named bool, depth int) error {
		if count++; count > maxFields || depth > 2*maxNesting {
			return broken("a configuration of more than %d fields, or deeper than %d", maxFields, 2*maxNesting)
		}
		switch {
		case named && (f.Name == "" || len(f.Name) > maxID) || len(f.Help) > maxText || len(f.Enum) > maxFields:
			return broken("a field of the configuration without a name, or with too much of something")
		case f.Type == "" || len(f.Type) > 64:
			return broken("field %s of the configuration has no type", clip(f.Name, 64))
		case (f.Type == "list" || f.Type == "map") && f.Items == nil:
			return broken("field %s of the configuration does not say what is in it", clip(f.Name, 64))
		}
		if f.Items != nil {
			if err := check(*f.Items, false, depth+1); err != nil {
				return err
			}
		}
		for _, inner := range f.Fields {
			if err := check(inner, true, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	for _, f := range s.Fields {
		if err := check(f, true, 1); err != nil {
			return err
		}
	}
	return nil
}

// Redact is settings with Redacted for every secret that is set, to show and
// to log. Settings that do not fit the schema become null: what cannot be
// understood may be a secret.
func (s Schema) Redact(settings json.RawMessage) json.RawMessage {
	if s.Validate(settings) != nil {
		return json.RawMessage("null")
	}
	value, _ := decode(settings)
	object, _ := value.(map[string]any)
	hide(s.Fields, object, func(any) any { return Redacted })
	redacted, err := json.Marshal(object)
	if err != nil || object == nil {
		return json.RawMessage("{}")
	}
	return redacted
}

// secrets lists the texts of the secrets in settings.
func (s Schema) secrets(settings json.RawMessage) []string {
	value, err := decode(settings)
	if err != nil {
		return nil
	}
	object, _ := value.(map[string]any)
	var found []string
	var gather func(v any)
	gather = func(v any) {
		switch v := v.(type) {
		case string:
			found = append(found, v)
		case json.Number:
			found = append(found, v.String())
		case []any:
			for _, item := range v {
				gather(item)
			}
		case map[string]any:
			for _, item := range v {
				gather(item)
			}
		}
	}
	hide(s.Fields, object, func(v any) any { gather(v); return v })
	return found
}

// hide calls replace for the value of every secret field.
func hide(fields []Field, object map[string]any, replace func(any) any) {
	for _, f := range fields {
		value, ok := object[f.Name]
		if ok && value != nil && value != "" {
			object[f.Name] = hideValue(f, value, replace)
		}
	}
}

func hideValue(f Field, value any, replace func(any) any) any {
	switch v := value.(type) {
	case map[string]any:
		switch {
		case f.Secret:
		case f.Type == "object":
			hide(f.Fields, v, replace)
			return v
		case f.Type == "map":
			for key, item := range v {
				v[key] = hideValue(*f.Items, item, replace)
			}
			return v
		}
	case []any:
		if !f.Secret && f.Type == "list" {
			for i, item := range v {
				v[i] = hideValue(*f.Items, item, replace)
			}
			return v
		}
	}
	if f.Secret {
		return replace(value)
	}
	return value
}
