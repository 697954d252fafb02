package dir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// link gives a synced file its name and makes the name durable. The folders are
// synced also when the name is taken: whoever is told that an object exists may
// rely on it, although the one who made it may not have come so far.
func (s *Store) link(name string, link func() error) error {
	folder := path.Dir(name)
	if err := s.makeFolders(folder); err != nil {
		return err
	}
	linked := link()
	if linked != nil && !errors.Is(linked, fs.ErrExist) {
		return linked
	}
	if err := s.syncFolder(folder); err != nil {
		return err
	}
	if err := s.settle(folder); err != nil {
		return err
	}
	return linked
}

func (s *Store) makeFolders(folder string) error {
	if folder == "." {
		return nil
	}
	if info, err := s.root.Lstat(folder); err == nil && info.IsDir() {
		return nil
	}
	if err := s.makeFolders(path.Dir(folder)); err != nil {
		return err
	}
	if err := s.root.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// settle makes the names of a folder and of those around it durable. Whoever
// made one may not have come so far, so only what this store synced is passed
// over.
func (s *Store) settle(folder string) error {
	if folder == "." {
		return nil
	}
	s.mu.Lock()
	settled := s.settled[folder]
	s.mu.Unlock()
	if settled {
		return nil // and so are those around it
	}
	if err := s.settle(path.Dir(folder)); err != nil {
		return err
	}
	if err := s.syncFolder(path.Dir(folder)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.settled) >= maxSettled {
		clear(s.settled)
	}
	s.settled[folder] = true
	return nil
}

// syncFolder makes the names in a folder durable. Once that failed, the folder
// is changed before it is synced again: the system may take for clean what it
// could not write, and only a change makes it write the names again.
func (s *Store) syncFolder(folder string) error {
	for {
		stirred := s.isDoubtful(folder)
		if stirred {
			if err := s.stir(folder); err != nil {
				return unsynced(err)
			}
		}
		err := s.syncOnce(folder)
		s.mu.Lock()
		doubtful := s.doubtful[folder]
		switch {
		case err != nil:
			s.doubtful[folder] = true
		case stirred:
			delete(s.doubtful, folder)
		}
		s.mu.Unlock()
		if err != nil || stirred || !doubtful {
			return err
		} // else somebody's sync failed meanwhile, which this one may have missed
	}
}

func (s *Store) syncOnce(folder string) (err error) {
	f, err := s.root.Open(folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return unsynced(s.sync(f))
}

func (s *Store) isDoubtful(folder string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubtful[folder]
}

// syncDoubtful syncs a folder for which that failed before.
func (s *Store) syncDoubtful(folder string) error {
	if !s.isDoubtful(folder) {
		return nil
	}
	return s.syncFolder(folder)
}

// stir changes a folder and leaves it as it was.
func (s *Store) stir(folder string) error {
	name := path.Join(folder, stirring+rand.Text())
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), s.root.Remove(name))
}

// unsynced tells a sync that failed from other errors.
func unsynced(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", blob.ErrUnsynced, err)
}
