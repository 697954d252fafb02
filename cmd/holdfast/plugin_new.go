package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
)

// sdkModule is where a plugin's author finds the SDK.
const sdkModule = "github.com/holdfast-dr/holdfast"

// pluginTemplate is the plugin that a new one starts as. Its files end in .tmpl
// because a directory with a go.mod could not be embedded.
//
//go:embed template/plugin/*.tmpl
var pluginTemplate embed.FS

// draftPlugin is a plugin about to be written.
type draftPlugin struct {
	Name, Module string
	Go           string // the version of the language
	Require      string // the version of the SDK; "" leaves the choice to go
	Replace      string // a checkout that stands for the SDK, or ""
	dir          string
}

func pluginNewCommand(a *app) *cobra.Command {
	var p draftPlugin
	cmd := &cobra.Command{
		Use:   "new NAME",
		Short: "Write a new plugin to fill in",
		Long: `Write a new plugin: a directory with one file to fill in, its test, its Makefile and a go.mod of its own. It builds and passes
the conformance suite as it is, on a back-end that everybody has: a directory with a file for each disk. Exchange that for
your own, and run make after every step.

The plugin imports the SDK of the release that this program is. If this is no release, or the module cannot be had where
you are, name a checkout of Holdfast with --replace.`,
		Example: `  holdfast plugin new acme
  holdfast plugin new acme --module git.example.com/storage/holdfast-plugin-acme --dir src/plugin
  holdfast plugin new acme --replace ~/src/holdfast`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Name = args[0]
			return a.newPlugin(cmd, p)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&p.dir, "dir", "", "directory to write it to, made if it is not there (holdfast-plugin-NAME)")
	flags.StringVar(&p.Module, "module", "", "path of the plugin's Go module (example.com/holdfast-plugin-NAME)")
	flags.StringVar(&p.Replace, "replace", "", "directory with a checkout of Holdfast, whose SDK is used")
	_ = cmd.MarkFlagDirname("dir")
	_ = cmd.MarkFlagDirname("replace")
	return cmd
}

var (
	// newPluginName is what core/host takes for a plugin's name.
	newPluginName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	// modulePath is stricter than go is, and lets nothing through that go.mod
	// would have to quote.
	modulePath = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~-]*(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])*$`)
	// release is a version that can be had from a module proxy; what git
	// describe says of a commit after it cannot.
	release = regexp.MustCompile(`^v[0-9]+\.[0-9]+\.[0-9]+(-(alpha|beta|rc)[.0-9]*)?$`)
)

func (a *app) newPlugin(cmd *cobra.Command, p draftPlugin) error {
	if !newPluginName.MatchString(p.Name) {
		return usagef(cmd, "%q cannot be a plugin's name: it has lower-case letters, digits and dashes, and begins with a letter", p.Name)
	}
	if p.dir == "" {
		p.dir = "holdfast-plugin-" + p.Name
	}
	if p.Module == "" {
		p.Module = "example.com/holdfast-plugin-" + p.Name
	}
	if !modulePath.MatchString(p.Module) {
		return usagef(cmd, "%q cannot be the path of a Go module, such as git.example.com/holdfast-plugin-%s", p.Module, p.Name)
	}
	if p.Module == sdkModule || strings.HasPrefix(p.Module, sdkModule+"/") {
		return usagef(cmd, "a plugin's module is its author's own, not below %s", sdkModule)
	}
	p.Go = "1.26.0" // as this module's
	if release.MatchString(version) {
		p.Require = version
	}
	var sums []byte
	if p.Replace != "" {
		var err error
		if p.Replace, sums, err = checkout(p.Replace); err != nil {
			return err
		}
		p.Require = "v0.0.0" // replaced, so no version is looked for
	}
	files, err := p.files()
	if err != nil {
		return err
	}
	if sums != nil {
		files["go.sum"] = sums // so that nothing has to be asked of the network
	}
	if err := p.write(files); err != nil {
		return err
	}
	return a.showNewPlugin(p)
}

// checkout looks whether a directory holds this module, and answers where that
// is and what it knows of the modules that it depends on.
func checkout(dir string) (path string, sums []byte, err error) {
	if path, err = filepath.Abs(dir); err != nil {
		return "", nil, err
	}
	doc, err := os.ReadFile(filepath.Join(path, "go.mod"))
	if err != nil || !bytes.HasPrefix(doc, []byte("module "+sdkModule+"\n")) {
		return "", nil, withHint(fmt.Errorf("%s is no checkout of Holdfast: its go.mod is not that of %s", path, sdkModule),
			"name the directory with Holdfast's go.mod")
	}
	if sums, err = os.ReadFile(filepath.Join(path, "go.sum")); err != nil {
		return "", nil, fmt.Errorf("read the checkout: %w", err)
	}
	if strings.ContainsAny(path, " \t\"'`\\\n") || strings.Contains(path, "//") {
		path = strconv.Quote(path)
	}
	return path, sums, nil
}

// files are those of the new plugin, by name.
func (p draftPlugin) files() (map[string][]byte, error) {
	// Go has double braces of its own.
	templates, err := template.New("plugin").Delims("[[", "]]").ParseFS(pluginTemplate, "template/plugin/*.tmpl")
	if err != nil {
		return nil, fmt.Errorf("read the template of plugins: %w", err)
	}
	files := make(map[string][]byte)
	for _, t := range templates.Templates() {
		var text bytes.Buffer
		if err := t.Execute(&text, p); err != nil {
			return nil, fmt.Errorf("fill in the template of plugins: %w", err)
		}
		name := strings.TrimSuffix(t.Name(), ".tmpl")
		if name == "gitignore" {
			name = ".gitignore" // embed leaves out what begins with a dot
		}
		files[name] = text.Bytes()
	}
	return files, nil
}

// write makes the directory and the files. It replaces nothing: what is there
// is somebody's work.
func (p draftPlugin) write(files map[string][]byte) error {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of the plugin: %w", err)
	}
	there, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("read the directory of the plugin: %w", err)
	}
	for _, entry := range there {
		if _, ours := files[entry.Name()]; ours || !strings.HasPrefix(entry.Name(), ".") { // .git may be there
			return withHint(fmt.Errorf("directory %s is not empty: it has %s", p.dir, entry.Name()), "choose another directory with --dir")
		}
	}
	for name, text := range files {
		f, err := os.OpenFile(filepath.Join(p.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s appeared in %s meanwhile", name, p.dir)
		}
		if err == nil {
			_, err = f.Write(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fmt.Errorf("write the plugin: %w", err)
		}
	}
	return nil
}

func (a *app) showNewPlugin(p draftPlugin) error {
	if a.output == "json" {
		return a.json(struct {
			Name      string `json:"name"`
			Directory string `json:"directory"`
			Module    string `json:"module"`
		}{p.Name, p.dir, p.Module})
	}
	a.say("plugin %s is in %s: fill in plugin.go, and keep this going", p.Name, p.dir)
	a.say("\n  cd %s\n  make", p.dir)
	if p.Require == "" {
		a.say("\nThis program is no release (%s), so make takes the newest release of %s.\n"+
			"To build with a checkout instead: go mod edit -replace %s=DIRECTORY", versionText(), sdkModule, sdkModule)
	}
	a.say("\nThe way from here to a plugin that others rely on: sdk/README.md in Holdfast's repository")
	return nil
}
