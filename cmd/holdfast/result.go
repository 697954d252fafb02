package main

import (
	"bytes"
	"encoding/json"
	"strings"
)

// resultFields are the members of a run's result as people read them: in their
// order, with words for names, and sizes in place of bytes.
func resultFields(raw json.RawMessage) []field {
	whole := []field{{"result", string(raw)}}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return whole
	}
	var fields []field
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return whole
		}
		var value any
		if err := decoder.Decode(&value); err != nil {
			return whole
		}
		fields = append(fields, resultField(name.(string), value))
	}
	return fields
}

func resultField(name string, value any) field {
	title := strings.ReplaceAll(strings.TrimSuffix(name, "_bytes"), "_", " ")
	switch v := value.(type) {
	case bool:
		return field{title, yesNo(v)}
	case string:
		return field{title, v}
	case json.Number:
		if n, err := v.Int64(); err == nil && (name == "bytes" || strings.HasSuffix(name, "_bytes")) {
			return field{title, bytesText(n)}
		}
		return field{title, v.String()}
	case []any:
		texts := make([]string, len(v))
		for i, item := range v {
			texts[i] = resultField("", item).value
		}
		return field{title, strings.Join(texts, ", ")}
	case map[string]any:
		if object, ok := v["object"].(string); ok && len(v) == 2 && v["problem"] != nil { // a finding
			return field{title, object + ": " + resultField("", v["problem"]).value}
		}
	case nil:
		return field{title, ""}
	}
	text, _ := json.Marshal(value) // it was JSON a moment ago
	return field{title, string(text)}
}
