package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "parley.im/parley/"

// houseImports reads which packages of this module each package imports, its tests left out.
func houseImports(t *testing.T) map[string][]string {
	t.Helper()
	imports := map[string][]string{}
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if path != "." {
				if _, err := fs.Stat(root, path+"/go.mod"); err == nil {
					return fs.SkipDir // another module
				}
			}
			if name := entry.Name(); name == "testdata" || name == "node_modules" || name != "." && strings.HasPrefix(name, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", path), nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		imports[dir] = append(imports[dir], []string{}...)
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if imported, ok := strings.CutPrefix(name, module); ok {
				imports[dir] = append(imports[dir], imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imports
}

// The floors of docs/architecture.md: a room imports rooms on lower floors only.
func TestFloors(t *testing.T) {
	floors := map[string]int{
		"server/matrix": 0, "server/audio": 0, "server/web": 0, "storage": 1, "server/user": 2, "server/keys": 2,
		"server/push": 2, "server/media": 2, "server/room": 3, "server/syncer": 4, "server/voice": 4, "api": 5,
		"federation": 5, "server": 6,
	}
	// storagetest and matrixtest are for the tests of the others.
	tests := map[string]bool{"storage/storagetest": true, "server/matrix/matrixtest": true}
	checked := 0
	for dir, imports := range houseImports(t) {
		floor, ok := floors[dir]
		if tests[dir] {
			floor, ok = floors["storage"]+1, true
		}
		if !ok {
			t.Errorf("%s stands on no floor: give it one in docs/architecture.md and here", dir)
			continue
		}
		checked++
		for _, imported := range imports {
			if tests[imported] {
				t.Errorf("%s imports %s, which is for tests", dir, imported)
			} else if other, ok := floors[imported]; !ok || other >= floor {
				t.Errorf("%s (floor %d) must not import %s (floor %d)", dir, floor, imported, other)
			}
		}
	}
	if checked < 8 {
		t.Errorf("only %d rooms were found", checked)
	}
}
