package storage

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"gorm.io/gorm"
)

// Migrations run in the order of their numbers, each once, each in a transaction. They are written once for both
// databases: BLOB becomes BYTEA on PostgreSQL, and what lies between a line "--@sqlite" or "--@postgres" and "--@end" is
// for that one only. A statement ends with a semicolon at the end of a line.
//
//go:embed migrations/*.sql
var migrations embed.FS

// advisoryLock keeps two processes from migrating the same PostgreSQL at once; the number is only ours.
const advisoryLock = 0x7061726c6579

func (db *DB) migrate(ctx context.Context) error {
	files, err := fs.ReadDir(migrations, "migrations")
	if err != nil {
		return err
	}
	transaction, err := db.begin(ctx)
	if err != nil {
		return err
	}
	if err := db.migrateIn(transaction.DB, files); err != nil {
		return errors.Join(err, transaction.rollback())
	}
	return transaction.commit()
}

func (db *DB) migrateIn(tx *gorm.DB, files []fs.DirEntry) error {
	if db.dialect == PostgreSQL {
		if err := tx.Exec("SELECT pg_advisory_xact_lock(?)", advisoryLock).Error; err != nil {
			return err
		}
	}
	if err := tx.Exec("CREATE TABLE IF NOT EXISTS migrations (version BIGINT PRIMARY KEY, name TEXT NOT NULL)").Error; err != nil {
		return err
	}
	var applied []int
	if err := tx.Raw("SELECT version FROM migrations").Scan(&applied).Error; err != nil {
		return err
	}
	done := map[int]bool{}
	for _, v := range applied {
		done[v] = true
	}
	newest := 0
	for _, f := range files { // fs.ReadDir sorts by name, and the names start with three digits
		number, name, _ := strings.Cut(strings.TrimSuffix(f.Name(), ".sql"), "_")
		version, err := strconv.Atoi(number)
		if err != nil || len(number) != 3 {
			return fmt.Errorf("migration %s: its name must start with three digits", f.Name())
		}
		newest = version
		if done[version] {
			continue
		}
		text, err := migrations.ReadFile("migrations/" + f.Name())
		if err != nil {
			return err
		}
		for _, statement := range db.statements(string(text)) {
			if err := tx.Exec(statement).Error; err != nil {
				return fmt.Errorf("migration %s: %w\n%s", f.Name(), err, statement)
			}
		}
		if err := tx.Exec("INSERT INTO migrations (version, name) VALUES (?, ?)", version, name).Error; err != nil {
			return err
		}
	}
	for v := range done {
		if v > newest {
			return fmt.Errorf("the database was written by a newer Parley (migration %d, this one knows %d): run that one", v, newest)
		}
	}
	return nil
}

// statements splits a migration's text for this database.
func (db *DB) statements(text string) []string {
	var all []string
	var one strings.Builder
	skip := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n ")
		switch line {
		case "--@sqlite":
			skip = db.dialect != SQLite
			continue
		case "--@postgres":
			skip = db.dialect != PostgreSQL
			continue
		case "--@end":
			skip = false
			continue
		}
		if comment := strings.Index(line, "--"); comment >= 0 {
			line = strings.TrimRight(line[:comment], " ")
		}
		if skip || line == "" {
			continue
		}
		one.WriteString(line)
		one.WriteByte('\n')
		if strings.HasSuffix(line, ";") {
			all = append(all, db.dialectSQL(one.String()))
			one.Reset()
		}
	}
	if rest := strings.TrimSpace(one.String()); rest != "" {
		all = append(all, db.dialectSQL(rest))
	}
	return all
}

func (db *DB) dialectSQL(statement string) string {
	if db.dialect == PostgreSQL {
		return strings.ReplaceAll(statement, " BLOB", " BYTEA")
	}
	return statement
}
