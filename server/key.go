package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"parley.im/parley/server/matrix"
)

// loadSigningKey reads the server's signing key, or makes one at the first start. Whoever has this key can speak for the
// server, so the file is readable by its owner only.
func loadSigningKey(dir string, log *slog.Logger) (*matrix.SigningKey, error) {
	path := filepath.Join(dir, "signing.key")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeSigningKey(path, log)
	}
	if err != nil {
		return nil, err
	}
	stat, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if stat.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others: run chmod 600 %s", path, path)
	}
	key, err := matrix.ParseSigningKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from a backup, since other servers know this server by it", path, err)
	}
	return key, nil
}

func makeSigningKey(path string, log *slog.Logger) (*matrix.SigningKey, error) {
	seed := make([]byte, 32)
	if _, err := rand.Read(seed); err != nil {
		return nil, err
	}
	id, err := matrix.ParseKeyID("ed25519:" + rand.Text()[:8])
	if err != nil {
		return nil, err
	}
	key, err := matrix.NewSigningKey(id, seed)
	if err != nil {
		return nil, err
	}
	// Written aside and renamed, so that a crash never leaves half a key.
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(key.Format())
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return nil, err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return nil, err
	}
	log.Info("made the signing key", "file", path)
	return key, nil
}

// lockDir keeps two processes from using one data directory. The lock goes with the process.
func lockDir(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another Parley: stop that one first, or set data_dir to another directory", dir), file.Close())
	}
	return file, nil
}
