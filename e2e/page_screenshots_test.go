package e2e

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// updateScreenshots has `go test ./e2e -run TestPageInEveryState -update-screenshots` write docs/screenshots.
var updateScreenshots = flag.Bool("update-screenshots", false, "write docs/screenshots")

func (st *stage) testScreenshots(t *testing.T, browser context.Context) {
	folder, shown := t.TempDir(), st.scenes
	if *updateScreenshots {
		folder = filepath.Join("..", "docs", "screenshots")
	} else {
		shown = []*scene{st.scene("pending")} // the way is tried, the time is saved
	}
	tab := newTab(t, browser)
	for _, s := range shown {
		for _, l := range looks {
			l.put(t, tab)
			s.open(t, tab)
			waitFor(t, tab, `document.readyState === 'complete' && !document.getElementById('live').hidden`)
			small, err := shrink(picture(t, tab))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(folder, s.name+"-"+l.name+".png"), small, 0o644); err != nil {
				t.Fatal(err)
			}
			if len(small) > 60_000 {
				t.Errorf("the screenshot of %s on a %s takes %d bytes", s.name, l.name, len(small))
			}
			if l := s.shown.Login; l != nil {
				if got := decodeQR(t, small); got != l.VerificationURIComplete {
					t.Errorf("with fewer colours the QR code says %q", got)
				}
			}
		}
	}
}

// shrink rewrites a PNG with the 256 colours it uses most, which is a third of the size: the page has few colours,
// and all others lie between a letter and its background.
func shrink(data []byte) ([]byte, error) {
	full, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	bounds := full.Bounds()
	uses := map[color.RGBA]int{}
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(full.At(x, y)).(color.RGBA) }
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			uses[at(x, y)]++
		}
	}
	var palette color.Palette
	for c := range uses {
		palette = append(palette, c)
	}
	slices.SortFunc(palette, func(a, b color.Color) int {
		x, y := a.(color.RGBA), b.(color.RGBA)
		return cmp.Or(uses[y]-uses[x], int(x.R)-int(y.R), int(x.G)-int(y.G), int(x.B)-int(y.B))
	})
	palette = palette[:min(len(palette), 256)]
	index := map[color.RGBA]uint8{}
	for c := range uses {
		index[c] = uint8(palette.Index(c)) // the nearest
	}
	small := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			small.SetColorIndex(x, y, index[at(x, y)])
		}
	}
	var out bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small)
	return out.Bytes(), err
}
