package secret

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// fileHeader is the first line of a key file, for whoever finds one.
const fileHeader = "# Holdfast master key. Keep a copy apart from the database: what it sealed opens with nothing else.\n"

// Open returns the master key that a URL names: file:PATH. A missing file is
// created with a new key; creating it is reported so that the operator can be
// told to keep a copy.
func Open(url string) (key *Key, created bool, err error) {
	path, ok := strings.CutPrefix(url, "file:")
	if !ok || path == "" {
		return nil, false, fmt.Errorf("open master key: %q is not of the form file:PATH", url)
	}
	path = strings.TrimPrefix(path, "//")
	key, err = readFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	err = createFile(path)
	if errors.Is(err, fs.ErrExist) { // another process was faster
		key, err = readFile(path)
		return key, false, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("create master key: %w", err)
	}
	key, err = readFile(path)
	return key, err == nil, err
}

func readFile(path string) (*Key, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open master key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > 4096 {
		return nil, fmt.Errorf("open master key: %s is not a key file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("open master key: %s has mode %o and may be read by others; chmod 600 it", path, mode)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("open master key: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(raw) != keySize {
			break
		}
		return newKey([keySize]byte(raw)), nil
	}
	return nil, fmt.Errorf("open master key: %s holds no key", path)
}

// createFile writes a new key file that appears whole or not at all: a server
// that died half way must not leave an empty key behind.
func createFile(path string) error {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, ".master-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	key := NewKey()
	_, err = temp.WriteString(fileHeader + base64.StdEncoding.EncodeToString(key.key[:]) + "\n")
	if err == nil {
		err = temp.Sync()
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Link(temp.Name(), path) // refuses to replace
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
