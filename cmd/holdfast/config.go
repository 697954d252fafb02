package main

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// configure reads process configuration into a struct, once: defaults (what the
// struct holds), then the file, then the environment (HOLDFAST_ and the key in
// upper case, dots as underscores), then flags of the same name (dots as
// dashes) that were given. Unknown keys in the file are refused, because a
// misspelt setting that is silently ignored shows at the worst moment.
//
// Keys are compared without case, so nothing that users name lives here.
func configure(file string, env func(string) string, flags *pflag.FlagSet, into any) error {
	v := viper.New()
	if file != "" {
		v.SetConfigFile(file)
		if err := v.ReadInConfig(); err != nil {
			return withHint(fmt.Errorf("read configuration %s: %w", file, err), "the file is YAML or TOML, by its extension")
		}
	}
	known := keysOf("", reflect.TypeOf(into).Elem())
	for _, key := range known {
		if value := env(envName(key)); value != "" {
			v.Set(key, value)
		}
		name := strings.NewReplacer(".", "-", "_", "-").Replace(key)
		if flag := flags.Lookup(name); flag != nil && flag.Changed {
			if slice, ok := flag.Value.(pflag.SliceValue); ok {
				v.Set(key, slice.GetSlice())
			} else {
				v.Set(key, flag.Value.String())
			}
		}
	}
	err := v.UnmarshalExact(into, func(c *mapstructure.DecoderConfig) {
		c.DecodeHook = mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(),
			mapstructure.StringToSliceHookFunc(","),
		)
	})
	if err != nil {
		from := file
		if from == "" {
			from = "environment and flags"
		}
		return withHint(&usageError{err: fmt.Errorf("configuration (%s): %w", from, configError(err)), path: "holdfast server"},
			"the keys are: %s", strings.Join(known, ", "))
	}
	return nil
}

// configError takes the decoder's decoration off: one sentence per fault.
func configError(err error) error {
	lines := strings.Split(err.Error(), "\n")
	kept := lines[:0]
	for _, line := range lines {
		line = strings.TrimPrefix(strings.TrimSpace(line), "* ")
		if line != "" && !strings.HasSuffix(line, "error(s) decoding:") && !strings.HasPrefix(line, "decoding failed due to") {
			kept = append(kept, strings.Replace(line, "'' has invalid keys", "unknown keys", 1))
		}
	}
	return errors.New(strings.Join(kept, "; "))
}

// envName is the environment variable of a key.
func envName(key string) string {
	return "HOLDFAST_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

// keysOf lists the keys of a configuration struct.
func keysOf(prefix string, t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("mapstructure")
		if name == "" || name == "-" {
			continue
		}
		if f.Type.Kind() == reflect.Struct {
			keys = append(keys, keysOf(prefix+name+".", f.Type)...)
			continue
		}
		keys = append(keys, prefix+name)
	}
	return keys
}

// openFile opens a file to be read.
func openFile(path string) (*os.File, error) { return os.Open(path) }
