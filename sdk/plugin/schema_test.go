package plugin

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
)

type schemaConfig struct {
	URI     string            `json:"uri" help:"where it is" required:"true"`
	Port    int               `json:"port,omitempty"`
	Mode    string            `json:"mode" enum:"fast,slow"`
	Secure  bool              `json:"secure"`
	Ratio   float64           `json:"ratio"`
	Key     string            `json:"key" secret:"true"`
	Keys    []string          `json:"keys" secret:"true"`
	Hosts   []schemaHost      `json:"hosts"`
	Labels  map[string]string `json:"labels"`
	Proxy   *schemaHost       `json:"proxy"`
	Hidden  func()            `json:"-"`
	private int
}

type schemaHost struct {
	Name     string `json:"name" required:"true"`
	Password string `json:"password" secret:"true"`
}

func TestSchema(t *testing.T) {
	schema, err := SchemaOf(&schemaConfig{private: 1})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}
	host := `"fields":[{"name":"name","type":"string","required":true},{"name":"password","type":"string","secret":true}]`
	want := `{"fields":[` +
		`{"name":"uri","type":"string","help":"where it is","required":true},` +
		`{"name":"port","type":"integer"},` +
		`{"name":"mode","type":"string","enum":["fast","slow"]},` +
		`{"name":"secure","type":"boolean"},` +
		`{"name":"ratio","type":"number"},` +
		`{"name":"key","type":"string","secret":true},` +
		`{"name":"keys","type":"list","secret":true,"items":{"type":"string"}},` +
		`{"name":"hosts","type":"list","items":{"type":"object",` + host + `}},` +
		`{"name":"labels","type":"map","items":{"type":"string"}},` +
		`{"name":"proxy","type":"object",` + host + `}]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("schema (-want +got):\n%s", diff)
	}
	for name, config := range map[string]any{
		"no pointer": schemaConfig{}, "nil": (*schemaConfig)(nil), "no struct": new(int),
		"no tag": &struct{ A string }{},
		"a channel": &struct {
			C chan int `json:"c"`
		}{},
		"itself": &struct {
			L *loop `json:"l"`
		}{},
	} {
		if _, err := SchemaOf(config); err == nil {
			t.Errorf("%s: has a schema", name)
		}
	}
}

type loop struct {
	Next *loop `json:"next"`
}

func TestValidate(t *testing.T) {
	schema, err := SchemaOf(&schemaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		settings string
		want     []string // parts of the error; none is well
	}{
		{`{"uri":"x"}`, nil},
		{`{"uri":"x","port":5,"mode":"fast","secure":true,"ratio":0.5,"key":"k","keys":["a"],"hosts":[{"name":"a"}],"labels":{"a":"b"},"proxy":{"name":"p"}}`, nil},
		{`{"uri":"x","port":null,"proxy":null}`, nil},
		{``, []string{"uri is required"}},
		{`{"uri":""}`, []string{"uri is required"}},
		{`[]`, []string{"not a JSON object"}},
		{`{"uri":"x"} {}`, []string{"not JSON"}},
		{`{"uri":"x"} }`, []string{"not JSON"}},
		{`{"uri":5}`, []string{"uri is not a string"}},
		{`{"uri":"x","port":"5"}`, []string{"port is not an integer"}},
		{`{"uri":"x","port":5.5}`, []string{"port is not an integer"}},
		{`{"uri":"x","mode":"medium"}`, []string{"mode is none of fast, slow"}},
		{`{"uri":"x","secure":1,"ratio":"a"}`, []string{"secure is not a boolean", "ratio is not a number"}},
		{`{"uri":"x","hosts":[{"name":"a"},{}]}`, []string{"hosts[1].name is required"}},
		{`{"uri":"x","hosts":{"name":"a"}}`, []string{"hosts is not a list"}},
		{`{"uri":"x","labels":{"a":1}}`, []string{"labels.a is not a string"}},
		{`{"uri":"x","proxy":{"nam":"a"}}`, []string{`proxy."nam" is unknown`, "proxy.name is required"}},
		{`{"uri":"x","key":5}`, []string{"key is not a string"}},
	} {
		err := schema.Validate(json.RawMessage(test.settings))
		if len(test.want) == 0 {
			if err != nil {
				t.Errorf("%s: %v", test.settings, err)
			}
			continue
		}
		if !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", test.settings, err)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q lacks %q", test.settings, err, part)
			}
		}
	}
}

func TestRedact(t *testing.T) {
	schema, err := SchemaOf(&schemaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	settings := json.RawMessage(`{"uri":"x","key":"SECRET1","keys":["SECRET2","SECRET3"],"hosts":[{"name":"a","password":"SECRET4"}],"proxy":{"name":"p","password":""}}`)
	want := `{"hosts":[{"name":"a","password":"********"}],"key":"********","keys":"********","proxy":{"name":"p","password":""},"uri":"x"}`
	if got := string(schema.Redact(settings)); got != want {
		t.Errorf("redacted:\n got %s\nwant %s", got, want)
	}
	if diff := cmp.Diff([]string{"SECRET1", "SECRET2", "SECRET3", "SECRET4"}, schema.secrets(settings)); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
	// A secret under a name that the schema does not know may be one too.
	if got := string(schema.Redact(json.RawMessage(`{"uri":"x","kee":"SECRET"}`))); got != "null" {
		t.Errorf("settings that do not fit, redacted: %s", got)
	}
}

func FuzzValidate(f *testing.F) {
	schema, err := SchemaOf(&schemaConfig{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(`{"uri":"x","hosts":[{"name":"a","password":"SECRET"}]}`)
	f.Fuzz(func(t *testing.T, settings string) {
		// A number may be too large for the field, a name may come twice.
		if schema.Validate(json.RawMessage(settings)) == nil {
			var c schemaConfig
			if err := json.Unmarshal([]byte(settings), &c); err != nil && !strings.Contains(err.Error(), "cannot unmarshal") && strings.TrimSpace(settings) != "" {
				t.Fatalf("sound settings %q cannot be read: %v", settings, err)
			}
		}
		schema.Redact(json.RawMessage(settings))
		schema.secrets(json.RawMessage(settings))
	})
}
