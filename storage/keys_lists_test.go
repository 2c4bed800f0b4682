package storage

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
)

// A join must not cost more the more rooms there are.
func TestStrangersAreFoundWithoutLookingAtOtherRooms(t *testing.T) {
	db, err := Open(t.Context(), Config{URL: "sqlite:" + filepath.Join(t.TempDir(), "test.db")}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Read(t.Context()).Raw("EXPLAIN QUERY PLAN "+strangersQuery, 1, "here", 1, "here", 1, "here", "@a:here", 1, 10).Rows()
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	steps := 0
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		steps++
		if strings.HasPrefix(detail, "SCAN ") && detail != "SCAN m" { // m is the union of what was searched for
			t.Errorf("the whole table is read: %s", detail)
		}
	}
	if err := rows.Err(); err != nil || steps == 0 {
		t.Error(steps, err)
	}
}
