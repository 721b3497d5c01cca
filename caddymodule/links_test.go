package caddymodule

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	fenced     = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	inlineCode = regexp.MustCompile("`[^`\n]*`")
	heading    = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	mdLink     = regexp.MustCompile(`\]\(([^()\s]+)\)`)
)

// anchors are what GitHub makes of a page's headings.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		all[strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1])] = true
	}
	return all
}

// TestArchitectureNamesEachFile compares the tables in docs/architecture.md with what is there.
func TestArchitectureNamesEachFile(t *testing.T) {
	page, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"flow", "caddymodule"} {
		_, table, found := strings.Cut(string(page), "| file in `"+folder+"/` |")
		table, _, _ = strings.Cut(table, "\n\n")
		files, err := filepath.Glob(filepath.Join("..", folder, "*.go"))
		if !found || err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", folder, len(files), err)
		}
		for _, file := range files {
			if name := filepath.Base(file); !strings.HasSuffix(name, "_test.go") && !strings.Contains(table, "`"+name+"`") {
				t.Errorf("%s/%s is not there", folder, name)
			}
		}
		for _, m := range regexp.MustCompile("`([a-z_]+\\.go)`").FindAllStringSubmatch(table, -1) {
			if _, err := os.Stat(filepath.Join("..", folder, m[1])); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestLinksLeadSomewhere follows each link of a page that stays in the repository, to its heading.
func TestLinksLeadSomewhere(t *testing.T) {
	links := 0
	err := filepath.WalkDir("..", func(page string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git"):
			return filepath.SkipDir
		case filepath.Ext(page) != ".md":
			return nil
		}
		raw, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		prose := inlineCode.ReplaceAllString(fenced.ReplaceAllString(string(raw), ""), "")
		for _, m := range mdLink.FindAllStringSubmatch(prose, -1) {
			to, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %s: %v", page, m[1], err)
				continue
			}
			if to.IsAbs() {
				continue
			}
			links++
			target := page
			if to.Path != "" {
				target = filepath.Join(filepath.Dir(page), filepath.FromSlash(to.Path))
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
			} else if to.Fragment != "" && filepath.Ext(target) == ".md" {
				there, err := os.ReadFile(target)
				if err != nil {
					return err
				}
				if !anchors(string(there))[to.Fragment] {
					t.Errorf("%s: %s has no heading %s", page, target, to.Fragment)
				}
			}
		}
		return nil
	})
	if err != nil || links < 100 {
		t.Errorf("%d links, %v", links, err)
	}
}
