package caddymodule

import "strings"

// plain is the page for curl and a serial console: what it is, what to do, where.
// Our own words are ASCII, and no line needs a terminal that can do more than print.
func (v *view) plain() string {
	var b strings.Builder
	line := func(s string) { b.WriteString(s + "\n") }
	part := func(sentences ...string) {
		if s := join(sentences...); s != "" {
			line("\n" + s)
		}
	}
	head := v.Title + " (" + string(v.State) + ")"
	if v.Session != "" {
		head = v.Session + ": " + head
	}
	line(head)
	if v.Login == nil || v.Replaces {
		part(v.Lead)
	}
	if l := v.Login; l != nil {
		if v.Replaces {
			line("\nA new login waits for approval. Until then the present one stays in use.")
		}
		line("\nOn your phone or in any browser, open\n\n    " + l.Link.Full())
		line("\nand enter the code\n\n    " + l.Code)
		if l.Direct.Href != "" {
			line("\nOr open this address, which has the code in it already:\n\n    " + l.Direct.Href)
		}
		line("\nThe code is good for " + l.LeftWords + ", until " + l.Expires.UTC + ".")
		if !v.Replaces {
			line("As soon as it is approved, calls through this proxy are answered.")
		}
	}
	part(v.Trouble, v.Next)
	if v.Detail != "" {
		line("\n" + pad("Error") + v.Detail)
		line(pad("Seen at") + v.At.UTC)
		if v.Retry != nil {
			line(pad("Next try at") + v.Retry.UTC)
		}
	}
	if v.Button != "" {
		line("\nOpen this page in a browser for the button \"" + v.Button + "\".")
	}
	if len(v.Facts) > 0 {
		b.WriteByte('\n')
	}
	for _, f := range v.Facts {
		value := f.Text + strings.Join(f.List, " ")
		if f.Time != nil {
			value = f.Time.UTC
		}
		if f.Note != "" {
			value += " (" + f.Note + ")"
		}
		line(pad(f.Label) + value)
	}
	return b.String()
}

// pad makes a column of labels.
func pad(label string) string {
	return label + ":" + strings.Repeat(" ", max(1, 22-len(label)))
}
