package caddymodule

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/language"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

// What a contributor hears who adds a language or a sentence.
func TestLanguageHasEverySentence(t *testing.T) {
	if english().tag != "en" || len(catalogues()) < 6 {
		t.Fatalf("%d languages, the first is %s", len(catalogues()), english().tag)
	}
	for _, c := range catalogues() {
		for _, why := range c.lacks(english()) {
			t.Errorf("lang/%s.txt: %s", c.tag, why)
		}
		if tag, err := language.Parse(c.tag); err != nil || tag.String() != c.tag {
			t.Errorf("lang/%s.txt: the name is no BCP 47 tag in its usual form (%s)", c.tag, tag)
		}
	}
}

// lacks compares a catalogue with the one that it is a translation of.
func (c *catalogue) lacks(source *catalogue) (all []string) {
	for _, key := range slices.Sorted(maps.Keys(source.texts)) {
		text, ok := c.texts[key]
		want := slices.Sorted(slices.Values(placeholder.FindAllString(source.texts[key], -1)))
		got := slices.Sorted(slices.Values(placeholder.FindAllString(text, -1)))
		switch {
		case !ok:
			all = append(all, "translate "+key+" = "+source.texts[key])
		case text == "":
			all = append(all, key+" is empty")
		case !slices.Equal(got, want):
			all = append(all, key+" has "+strings.Join(got, " ")+", and "+source.tag+" has "+strings.Join(want, " "))
		case strings.ContainsAny(text, "<>&\"") || strings.ContainsFunc(text, unicode.IsControl):
			all = append(all, key+" has markup in it: write plain text")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.texts)) {
		if _, ok := source.texts[key]; !ok {
			all = append(all, key+" is not a key of "+source.tag+": correct it, or take it out")
		}
	}
	return all
}

func TestLanguageCheckFindsWhatIsWrong(t *testing.T) {
	source := &catalogue{tag: "en", texts: map[string]string{"a": "A {x} and {y}", "b": "B", "c": "C", "d": "D"}}
	got := (&catalogue{texts: map[string]string{"a": "A {x} {z}", "b": "<b>", "d": "", "e": "E"}}).lacks(source)
	want := []string{
		"a has {x} {z}, and en has {x} {y}", "b has markup in it: write plain text", "translate c = C", "d is empty",
		"e is not a key of en: correct it, or take it out",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for data, want := range map[string]string{
		"# x\n\na = b\nc": "line 4: write 'key = sentence'", "a b = c": "line 1: write 'key = sentence'", "a = b\na = c": "line 2: a is there twice",
	} {
		if _, err := parseCatalogue(data); err == nil || err.Error() != want {
			t.Errorf("%q: %v", data, err)
		}
	}
}

// A sentence that nothing says any more would be translated in vain.
func TestLanguageSaysNothingInVain(t *testing.T) {
	var code strings.Builder
	files, _ := filepath.Glob("*.go")
	for _, f := range append(files, "page.html") {
		if !strings.HasSuffix(f, "_test.go") {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(data)
		}
	}
	for key := range english().texts {
		kind, rest, _ := strings.Cut(key, ".")
		name, _, _ := strings.Cut(rest, ".")
		used := strings.Contains(code.String(), `"`+key+`"`)
		switch kind {
		case "reauthorize", "fix_configuration", "retry": // by the server's code
			used = true
		case "refuse", "guard":
			used = used || name == "other" || strings.Contains(code.String(), `"`+name+`"`)
		case "overview":
			used = used || strings.Contains(code.String(), `"`+strings.TrimSuffix(key, "_word")+`"`)
		default:
			_, state := tones[flow.State(kind)]
			used = used || state || kind == "starting"
		}
		if !used {
			t.Errorf("nothing says %s", key)
		}
	}
}

// A terminal that can do no more than print shows the English words.
func TestLanguageOfTerminalsIsASCII(t *testing.T) {
	now := time.Now()
	samples := sampleStatuses(now)
	texts := []string{english().overview(slices.Collect(maps.Values(samples)), now).plain()}
	for _, st := range samples {
		texts = append(texts, newView(st, now).plain(), newUnavailable(st, "", now).plain())
	}
	for _, text := range texts {
		if i := strings.IndexFunc(text, func(r rune) bool { return r >= utf8.RuneSelf }); i >= 0 {
			t.Errorf("not ASCII: %q", text[i:])
		}
	}
}

func TestLanguageFollowsAcceptLanguage(t *testing.T) {
	for header, want := range map[string]string{
		"":                                       "en",
		"*":                                      "en",
		"de":                                     "de",
		"de-AT, en;q=0.5":                        "de",
		"en-GB,en;q=0.9,de;q=0.8":                "en",
		"en;q=0.3, fr;q=0.4":                     "fr",
		"fr-CA":                                  "fr",
		"es-419,es;q=0.9":                        "es",
		"es-MX":                                  "es",
		"ja-JP":                                  "ja",
		"JA":                                     "ja",
		"zh":                                     "zh-Hans",
		"zh-CN,zh;q=0.9,en;q=0.8":                "zh-Hans",
		"zh-Hans-SG":                             "zh-Hans",
		"zh-SG":                                  "zh-Hans",
		"zh-TW,zh;q=0.9,en-US;q=0.8,en;q=0.7":    "zh-Hans", // what Chromium sends there: any Chinese before English
		"zh-TW,en;q=0.5":                         "en",      // asked for as a second choice
		"zh-Hant":                                "zh-Hans", // easier to follow than nothing
		"zh-HK":                                  "zh-Hans",
		"pl, de;q=0.5":                           "de",
		"pl":                                     "en",
		"ko,*;q=0.5":                             "en",
		"de;q=0, fr;q=0.1":                       "fr",
		"de;q=0":                                 "en",
		"de;q=1.5, fr":                           "fr",
		"de;q=x, fr;q=0.1":                       "fr",
		"de;q=NaN, fr;q=0.1":                     "fr",
		"de;level=1, fr":                         "fr",
		"!!,de":                                  "de",
		"  de ; q = 0.5 , fr;q=0.4":              "de",
		",,;;,=":                                 "en",
		"x-klingon, i-default":                   "en",
		"root, und, mul, de":                     "de",
		strings.Repeat("pl,", 15) + "de":         "de",
		strings.Repeat("pl,", 16) + "de":         "en",
		strings.Repeat("a", 600) + ",de":         "en",
		"de," + strings.Repeat("a", 600):         "de",
		"fr;q=0.1,de" + strings.Repeat(" ", 600): "fr",
		strings.Repeat("-", 500) + ",de":         "de",
		"\x00\xff,de":                            "de",
	} {
		w := do(newFake(sampleStatuses(time.Now())["authorized"]).page(), "GET", testPath, "Accept", "text/html", "Accept-Language", header)
		if got := w.Header().Get("Content-Language"); got != want || !strings.Contains(w.Body.String(), `<html lang="`+want+`">`) {
			t.Errorf("%.60q: %s, want %s", header, got, want)
		}
	}
	w := do(newFake(flow.Status{}).page(), "GET", testPath, "Accept", "text/html", "Accept-Language", "pl", "Accept-Language", "de")
	if w.Header().Get("Content-Language") != "de" {
		t.Error("the second Accept-Language line was not read")
	}
}

func FuzzAcceptLanguage(f *testing.F) {
	for _, seed := range []string{"de-AT,en;q=0.5", "zh-Hant-TW-x-a", "*;q=0", ",", "de;q=1e9", "sl-rozaj-biske-1994", "a-DE", "en-u-ca-gregory-rg-gbzzzz"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		tags := parseLanguages(header)
		if len(tags) > maxLanguages {
			t.Errorf("%d tags", len(tags))
		}
		languageMatcher().Match(tags...)
	})
}

// What is put into a sentence is put in once: no server finds its words filled in.
func TestLanguageFillsInOnce(t *testing.T) {
	c := &catalogue{texts: map[string]string{"a": "{x} and {y}"}}
	if got := c.text("a", "x", "{y}", "y", "{x}"); got != "{y} and {x}" {
		t.Error(got)
	}
	if got := c.text("b"); got != "[b]" {
		t.Error(got)
	}
	if got := (&catalogue{fallback: c}).text("a", "x", "1", "y", "2"); got != "1 and 2" {
		t.Error("what is not translated is not in English:", got)
	}
}
