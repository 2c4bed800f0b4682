package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRotatedKeyIsPublishedAsExpired(t *testing.T) {
	dir := t.TempDir()
	discard := slog.New(slog.DiscardHandler)
	first, err := loadSigningKey(dir, discard)
	if err != nil {
		t.Fatal(err)
	}
	at := time.UnixMilli(1_800_000_000_000)
	for n := range 2 {
		old, next, err := rotateKey(dir, at.Add(time.Duration(n)*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		key, err := loadSigningKey(dir, discard)
		if err != nil || key.ID != next || old == next {
			t.Fatalf("after %s the key is %v, %v; told %s", old, key, err, next)
		}
		retired, err := loadRetiredKeys(dir, key.ID)
		if err != nil || len(retired) != n+1 {
			t.Fatalf("%d retired keys, %v", len(retired), err)
		}
		if k := retired[0]; k.ID != first.ID || !bytes.Equal(k.Key.Bytes(), first.Public().Bytes()) || !k.ExpiredAt.Equal(at) {
			t.Errorf("retired: %+v", k)
		}
	}
	file, err := os.ReadFile(filepath.Join(dir, retiredKeysFile))
	if err != nil || strings.Contains(string(file), strings.Fields(string(first.Format()))[2]) {
		t.Errorf("the private half was kept: %v", err)
	}
}

// A rotation that breaks off after the old key was noted leaves that key in use.
func TestBrokenRotationLeavesTheKeyInUse(t *testing.T) {
	dir := t.TempDir()
	key, err := loadSigningKey(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, signingKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := rotateKey(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, signingKeyFile), before, 0o600); err != nil {
		t.Fatal(err)
	}
	if retired, err := loadRetiredKeys(dir, key.ID); err != nil || len(retired) != 0 {
		t.Errorf("the key in use counts as retired: %v, %v", retired, err)
	}
	if _, _, err := rotateKey(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	if retired, err := loadRetiredKeys(dir, ""); err != nil || len(retired) != 1 || retired[0].ID != key.ID {
		t.Errorf("after the second try: %v, %v", retired, err)
	}
}

func TestRetiredKeysThatCannotBeReadStopTheStart(t *testing.T) {
	for _, line := range []string{"ed25519:a", "ed25519:a !!! 5", "ed25519:a " + strings.Repeat("A", 43) + " soon", "ed25519:a " + strings.Repeat("A", 43) + " -1"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, retiredKeysFile), []byte(line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadRetiredKeys(dir, ""); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%q: %v", line, err)
		}
	}
}
