package caddymodule

import (
	"embed"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/text/language"
)

//go:embed lang/*.txt
var catalogueFiles embed.FS

// catalogue is what the page says in one language. The files in lang are all there
// is to a language: en.txt says how to add one.
type catalogue struct {
	tag      string // BCP 47, the name of the file
	texts    map[string]string
	fallback *catalogue // for what is not translated; nil for English
}

// catalogues are all languages, English first. They are read for the first page or
// refusal, not at each start of a Caddy.
var catalogues = sync.OnceValue(loadCatalogues)

// english is what callers and terminals get, and whoever reads nothing else of ours.
func english() *catalogue { return catalogues()[0] }

var languageMatcher = sync.OnceValue(func() language.Matcher {
	tags := make([]language.Tag, len(catalogues()))
	for i, c := range catalogues() {
		tags[i] = language.MustParse(c.tag)
	}
	return language.NewMatcher(tags)
})

func loadCatalogues() []*catalogue {
	files, err := catalogueFiles.ReadDir("lang")
	if err != nil {
		panic(err) // they are in the binary
	}
	all := make([]*catalogue, 0, len(files))
	for _, f := range files {
		data, err := catalogueFiles.ReadFile(path.Join("lang", f.Name()))
		if err != nil {
			panic(err)
		}
		texts, err := parseCatalogue(string(data))
		if err != nil {
			panic(f.Name() + ": " + err.Error()) // the tests come first
		}
		all = append(all, &catalogue{tag: strings.TrimSuffix(f.Name(), ".txt"), texts: texts})
	}
	at := slices.IndexFunc(all, func(c *catalogue) bool { return c.tag == "en" })
	all[0], all[at] = all[at], all[0]
	for _, c := range all[1:] {
		c.fallback = all[0]
	}
	return all
}

// parseCatalogue reads lines of "key = sentence"; empty ones and those that begin
// with # are for the translator.
func parseCatalogue(data string) (map[string]string, error) {
	texts := make(map[string]string)
	n := 0
	for line := range strings.Lines(data) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, text, ok := strings.Cut(line, " = ")
		if !ok || strings.ContainsAny(key, " \t") {
			return nil, fmt.Errorf("line %d: write 'key = sentence'", n)
		}
		if _, twice := texts[key]; twice {
			return nil, fmt.Errorf("line %d: %s is there twice", n, key)
		}
		texts[key] = strings.TrimSpace(text)
	}
	return texts, nil
}

// find returns the sentence of a key.
func (c *catalogue) find(key string) (string, bool) {
	if s, ok := c.texts[key]; ok || c.fallback == nil {
		return s, ok
	}
	return c.fallback.find(key)
}

// maybe is the sentence of a key, empty if there is none.
func (c *catalogue) maybe(key string) string {
	s, _ := c.find(key)
	return s
}

// text is the sentence of a key, with values put in by name: what, for "{host}", is
// given as "host", value. It stays plain text; a template escapes it.
func (c *catalogue) text(key string, fill ...string) string {
	s, ok := c.find(key)
	if !ok {
		return "[" + key + "]" // a test looks for these
	}
	if len(fill) == 0 {
		return s
	}
	pairs := make([]string, len(fill))
	for i := range fill {
		pairs[i] = fill[i]
		if i%2 == 0 {
			pairs[i] = "{" + fill[i] + "}"
		}
	}
	// In one go: a placeholder in a server's words stays what it is.
	return strings.NewReplacer(pairs...).Replace(s)
}

// split is the sentence before and after its one placeholder, where that becomes an
// element of its own.
func (c *catalogue) split(key, name string) []string {
	before, after, _ := strings.Cut(c.text(key), "{"+name+"}")
	return []string{before, after}
}

// count is a number for text.
func count(n int) string { return strconv.Itoa(n) }

const (
	// maxLanguages bounds what is read of Accept-Language: browsers send about eight
	// tags, and parsing is the caller's to make expensive.
	maxLanguages    = 16
	maxLanguageSize = 512 // bytes of all its lines
)

// languageOf picks the reader's language (RFC 9110 §12.5.4). Among those wanted
// the first that a catalogue fits well; then one whose readers can follow, as
// Simplified Chinese for who asks for Traditional and nothing else; then English.
func languageOf(r *http.Request) *catalogue {
	wanted := parseLanguages(strings.Join(r.Header.Values("Accept-Language"), ","))
	for _, least := range []language.Confidence{language.High, language.Low} {
		for _, tag := range wanted {
			if _, i, sure := languageMatcher().Match(tag); sure >= least {
				return catalogues()[i]
			}
		}
	}
	return english()
}

// parseLanguages reads an Accept-Language field, best first, and passes over what
// is malformed or has a quality of zero.
func parseLanguages(s string) []language.Tag {
	type wish struct {
		tag language.Tag
		q   float64
	}
	if len(s) > maxLanguageSize {
		s = s[:maxLanguageSize]
		s = s[:strings.LastIndexByte(s, ',')+1] // the last one may be cut in two
	}
	var wishes []wish
	for n, element := range strings.Split(s, ",") {
		if n == maxLanguages {
			break
		}
		name, param, weighted := strings.Cut(element, ";")
		name = strings.TrimSpace(name)
		q := 1.0
		if weighted {
			weight, value, _ := strings.Cut(param, "=")
			var err error
			if q, err = strconv.ParseFloat(strings.TrimSpace(value), 64); err != nil || !strings.EqualFold(strings.TrimSpace(weight), "q") {
				continue
			}
		}
		if name == "" || name == "*" || len(name) > 35 || !(q > 0 && q <= 1) { // RFC 5646 §4.4.1
			continue
		}
		if tag, err := language.Parse(name); err == nil && tag != language.Und {
			wishes = append(wishes, wish{tag, q})
		}
	}
	slices.SortStableFunc(wishes, func(a, b wish) int {
		switch {
		case a.q > b.q:
			return -1
		case a.q < b.q:
			return 1
		}
		return 0
	})
	tags := make([]language.Tag, len(wishes))
	for i := range wishes {
		tags[i] = wishes[i].tag
	}
	return tags
}
