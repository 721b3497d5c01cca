package caddymodule

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// structs are the package's struct types, with their comments.
func structs(t *testing.T) map[string]*ast.StructType {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*ast.StructType{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range gen.Specs {
				if spec, ok := spec.(*ast.TypeSpec); ok {
					if s, ok := spec.Type.(*ast.StructType); ok {
						all[spec.Name.Name] = s
					}
				}
			}
		}
	}
	return all
}

// field is one line of a table.
type field struct{ name, kind, doc string }

// fieldsOf lists what a struct is in JSON, those of embedded structs included.
func fieldsOf(t *testing.T, all map[string]*ast.StructType, of string) (list []field) {
	t.Helper()
	if all[of] == nil {
		t.Fatalf("there is no type %s", of)
	}
	for _, f := range all[of].Fields.List {
		if f.Tag == nil {
			if ident, ok := f.Type.(*ast.Ident); ok && len(f.Names) == 0 {
				list = append(list, fieldsOf(t, all, ident.Name)...)
			} else if len(f.Names) == 0 {
				list = append(list, field{"…", "", "All fields of Caddy's [http transport](https://caddyserver.com/docs/json/apps/http/servers/routes/handle/reverse_proxy/transport/http/)."})
			}
			continue
		}
		raw, err := strconv.Unquote(f.Tag.Value)
		if err != nil {
			t.Fatal(err)
		}
		tag := reflect.StructTag(raw)
		name, _, _ := strings.Cut(tag.Get("json"), ",")
		doc := strings.Join(strings.Fields(f.Doc.Text()), " ")
		if doc == "" || name == "" {
			t.Errorf("%s.%s has no name in JSON or no comment, and Caddy's website shows both", of, f.Names[0].Name)
		}
		list = append(list, field{"`" + name + "`", jsonKind(t, f.Type, tag), strings.ReplaceAll(doc, "|", `\|`)})
	}
	return list
}

// jsonKind says what a value looks like in JSON.
func jsonKind(t *testing.T, of ast.Expr, tag reflect.StructTag) string {
	t.Helper()
	switch of := of.(type) {
	case *ast.Ident:
		switch of.Name {
		case "bool", "string":
			return of.Name
		case "int":
			return "number"
		}
		return of.Name
	case *ast.StarExpr:
		name := jsonKind(t, of.X, tag)
		return "[" + name + "](#" + strings.ToLower(name) + ")"
	case *ast.ArrayType:
		return "list of " + jsonKind(t, of.Elt, tag) + "s"
	case *ast.MapType:
		return "map of " + jsonKind(t, of.Value, tag)
	case *ast.SelectorExpr:
		switch of.Sel.Name {
		case "Duration":
			return "duration"
		case "RawMessage":
			namespace, _, _ := strings.Cut(strings.TrimPrefix(tag.Get("caddy"), "namespace="), " ")
			return "module of `" + namespace + "`"
		}
		return "string"
	}
	t.Fatalf("no words for %T", of)
	return ""
}

// linked has the types that a page does not describe lead to the app's, which describes those that pages share.
func linked(kind, page string) string {
	_, name, isType := strings.Cut(kind, "](#")
	if !isType || strings.Contains(strings.ToLower(page), "<!-- fields of "+strings.TrimSuffix(name, ")")+" -->") {
		return kind
	}
	return strings.Replace(kind, "](#", "](app.md#", 1)
}

// documented are the types that docs/modules has tables of.
var documented = []string{"App", "Client", "Provider", "Account", "Handler", "RequiredHeader", "StatusPage", "Transport"}

// TestModulePagesHaveEachField compares the tables in docs/modules with the comments that Caddy's website is made from.
// With -update it writes the tables instead.
func TestModulePagesHaveEachField(t *testing.T) {
	all := structs(t)
	pages, err := filepath.Glob(filepath.Join("..", "docs", "modules", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	marked := regexp.MustCompile(`(?s)(<!-- fields of (\w+) -->\n).*?(<!-- /fields -->)`)
	var found []string
	for _, page := range pages {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		want := marked.ReplaceAllStringFunc(string(raw), func(s string) string {
			m := marked.FindStringSubmatch(s)
			found = append(found, m[2])
			table := m[1] + "\n| field | value | meaning |\n|---|---|---|\n"
			for _, f := range fieldsOf(t, all, m[2]) {
				table += "| " + f.name + " | " + linked(f.kind, string(raw)) + " | " + f.doc + " |\n"
			}
			return table + "\n" + m[3]
		})
		if *updatePages {
			if err := os.WriteFile(page, []byte(want), 0o644); err != nil { // as all pages are
				t.Fatal(err)
			}
		} else if want != string(raw) {
			t.Errorf("%s differs from the comments in the code: go test ./caddymodule -run ModulePages -update", page)
		}
	}
	for _, name := range documented {
		if !slices.Contains(found, name) {
			t.Errorf("no page describes %s", name)
		}
	}
}
