package flow

import (
	"regexp"
	"strings"
	"testing"
)

// Names and header fields are checked by hand, for a quick start; these say what is meant.
var (
	nameRE  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(~[0-9a-f]{32})?$`)
	fieldRE = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
)

func FuzzNames(f *testing.F) {
	digest := strings.Repeat("0a", 16)
	for _, s := range []string{
		"", "a", "acme", "-a", "a-", "a b", "a\nb", "a\n", "\u00e9", "a\u00e9b", "a~", "a~" + digest, "~" + digest, "a~" + digest + "0", "a~" + digest + "~",
		"a~" + strings.ToUpper(digest), strings.Repeat("a", 64), strings.Repeat("a", 65), strings.Repeat("a", 64) + "~" + digest, "X-Api-Key", "X:", "a\xffb",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := isName(s), nameRE.MatchString(s); got != want {
			t.Errorf("%q as a name: %v, want %v", s, got, want)
		}
		if got, want := isFieldName(s), fieldRE.MatchString(s); got != want {
			t.Errorf("%q as a header field: %v, want %v", s, got, want)
		}
	})
}
