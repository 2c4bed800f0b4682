package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write config.example.yaml anew")

const exampleHead = `# Parley's configuration, every option with its default. A file needs only what differs from this; an empty one is
# valid. Parley reads parley.yaml in the current directory, or the file that -config names. Each option can also be set by an
# environment variable that is named after it: tls.listen is PARLEY_TLS_LISTEN, and a list is written with commas.
#
# Durations are written like 300ms, 30s, 15m or 24h. An unknown or misspelt option is an error.
# "parley check" says whether a file is valid. docs/operations.md leads through the first day.
`

// config.example.yaml is made from the Config structs: their comments and their defaults. After a change of one of them:
// go test ./server -run TestExample -update
func TestExampleConfigurationIsThatOfTheCode(t *testing.T) {
	docs := fieldDocs(t)
	var b strings.Builder
	b.WriteString(exampleHead)
	writeSection(t, &b, docs, reflect.ValueOf(*DefaultConfig()), "", "")
	if *update {
		if err := os.WriteFile("../config.example.yaml", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("config.example.yaml is not up to date: go test ./server -run TestExample -update")
	}
	cfg, _, err := loadConfig("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	if err := want.complete(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, cfg, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the example differs from the defaults (-default +example):\n%s", diff)
	}
}

// fieldDocs reads the comments of all struct fields of the packages that have a Config, by package.Type.Field.
func fieldDocs(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	var dirs []string
	for dir := range houseImports(t) {
		dirs = append(dirs, filepath.Join("..", dir))
	}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				spec, ok := n.(*ast.TypeSpec)
				if !ok {
					return true
				}
				if body, ok := spec.Type.(*ast.StructType); ok {
					for _, field := range body.Fields.List {
						for _, name := range field.Names {
							docs[file.Name.Name+"."+spec.Name.Name+"."+name.Name] = field.Doc.Text() + field.Comment.Text()
						}
					}
				}
				return false
			})
		}
	}
	return docs
}

// optionNames replaces the Go names of a struct's fields in a comment by those in the file.
func optionNames(doc string, t reflect.Type) string {
	var pairs []string
	for i := range t.NumField() {
		if name, ok := optionName(t.Field(i)); ok {
			pairs = append(pairs, t.Field(i).Name, name)
		}
	}
	words := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		words[pairs[i]] = pairs[i+1]
	}
	var b, word strings.Builder
	flush := func() {
		if name, ok := words[word.String()]; ok {
			b.WriteString(name)
		} else {
			b.WriteString(word.String())
		}
		word.Reset()
	}
	for _, r := range doc {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			word.WriteRune(r)
			continue
		}
		flush()
		b.WriteRune(r)
	}
	flush()
	return b.String()
}

func writeSection(t *testing.T, b *strings.Builder, docs map[string]string, section reflect.Value, indent, prefix string) {
	t.Helper()
	kind := section.Type()
	for i := range kind.NumField() {
		name, ok := optionName(kind.Field(i))
		if !ok {
			continue
		}
		value := section.Field(i)
		key := filepath.Base(kind.PkgPath()) + "." + kind.Name() + "." + kind.Field(i).Name
		if kind.PkgPath() == reflect.TypeFor[Config]().PkgPath() {
			key = "main." + kind.Name() + "." + kind.Field(i).Name
		}
		doc := strings.TrimSpace(optionNames(docs[key], kind))
		if doc == "" {
			t.Errorf("%s has no comment", key)
		}
		b.WriteByte('\n')
		for line := range strings.Lines(doc) {
			fmt.Fprintf(b, "%s# %s\n", indent, strings.TrimSpace(line))
		}
		if element, ok := entries(value); ok {
			writeEntries(b, docs, element, indent)
		}
		if value.Kind() == reflect.Struct {
			fmt.Fprintf(b, "%s%s:\n", indent, name)
			writeSection(t, b, docs, value, indent+"  ", prefix+name+".")
			continue
		}
		fmt.Fprintf(b, "%s%s: %s\n", indent, name, scalar(t, value))
	}
}

// entries is the type of a list's entries if they are structs.
func entries(value reflect.Value) (reflect.Type, bool) {
	if value.Kind() != reflect.Slice || value.Type().Elem().Kind() != reflect.Struct {
		return nil, false
	}
	return value.Type().Elem(), true
}

// writeEntries says what an entry of a list may hold.
func writeEntries(b *strings.Builder, docs map[string]string, kind reflect.Type, indent string) {
	fmt.Fprintf(b, "%s# Each entry has:\n", indent)
	for i := range kind.NumField() {
		if name, ok := optionName(kind.Field(i)); ok {
			doc := optionNames(docs[filepath.Base(kind.PkgPath())+"."+kind.Name()+"."+kind.Field(i).Name], kind)
			fmt.Fprintf(b, "%s#   %s: %s\n", indent, name, strings.Join(strings.Fields(doc), " "))
		}
	}
}

func scalar(t *testing.T, value reflect.Value) string {
	t.Helper()
	if d, ok := value.Interface().(time.Duration); ok {
		text := d.String()
		for _, zero := range []string{"m0s", "h0m"} {
			if strings.HasSuffix(text, zero) {
				text = strings.TrimSuffix(text, zero[1:])
			}
		}
		return text
	}
	if value.Kind() == reflect.Slice && value.Len() == 0 {
		return "[]"
	}
	text, err := yaml.Marshal(value.Interface())
	if err != nil {
		t.Fatal(err)
	}
	if value.Kind() == reflect.Slice {
		var quoted []string
		for i := range value.Len() {
			quoted = append(quoted, fmt.Sprintf("%q", value.Index(i).Interface()))
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return strings.TrimSpace(string(text))
}
