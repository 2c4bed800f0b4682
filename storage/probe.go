package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// Probe says whether the database can be reached, and how far its tables are; it changes nothing.
func Probe(ctx context.Context, cfg Config) (found string, err error) {
	if path, ok := strings.CutPrefix(cfg.URL, "sqlite:"); ok {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return path + " will be made at the first start", nil
		}
	}
	db := &DB{log: slog.New(slog.DiscardHandler)}
	defer func() { err = errors.Join(err, db.closeHandles()) }()
	if err := db.open(ctx, cfg); err != nil {
		return "", err
	}
	var migration int
	if err := db.Read(ctx).Raw("SELECT coalesce(max(version), 0) FROM migrations").Row().Scan(&migration); err != nil {
		return "answers, and is empty", db.Ping(ctx)
	}
	return fmt.Sprintf("answers, its tables are of migration %d", migration), nil
}
