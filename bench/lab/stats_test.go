package lab

import (
	"math"
	"slices"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		name   string
		values []float64
		want   Spread
	}{
		{"one", []float64{7}, Spread{7, 7, 7}},
		{"two", []float64{4, 2}, Spread{2.5, 3, 3.5}},
		{"odd, unsorted", []float64{5, 1, 4, 2, 3}, Spread{2, 3, 4}},
		{"an outlier", []float64{1, 1, 1, 1, 1000}, Spread{1, 1, 1}},
	} {
		given := slices.Clone(test.values)
		if got := SpreadOf(test.values); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
		if !slices.Equal(given, test.values) {
			t.Errorf("%s: the values were sorted in place", test.name)
		}
	}
	if s := SpreadOf(nil); !math.IsNaN(s.Mid) {
		t.Errorf("of none: %+v", s)
	}
}

func TestQuantile(t *testing.T) {
	var thousand []float64
	for i := range 1001 {
		thousand = append(thousand, float64(i))
	}
	for q, want := range map[float64]float64{0: 0, 0.5: 500, 0.99: 990, 0.999: 999, 1: 1000} {
		if got := Quantile(thousand, q); math.Abs(got-want) > 1e-9 {
			t.Errorf("%v: %v, want %v", q, got, want)
		}
	}
}

func TestPairsDisturbedOnEitherSideAreDropped(t *testing.T) {
	a := []Slice{{CPU: 2}, {CPU: 90, Others: 0.2}, {CPU: 3}, {CPU: 4}}
	b := []Slice{{CPU: 1}, {CPU: 1}, {CPU: 30, Others: 0.06}, {CPU: 1}}
	ratios, dropped, calm := Pairs(a, b, CPU)
	if !slices.Equal(ratios, []float64{2, 4}) || dropped != 2 || !calm {
		t.Errorf("%v, %d dropped, calm %v", ratios, dropped, calm)
	}
}

// Dropping nearly everything would leave a median of luck.
func TestWithoutQuietEverythingCountsAndIsSaid(t *testing.T) {
	busy := []Slice{{CPU: 2, Others: 0.3}, {CPU: 4, Others: 0.3}, {CPU: 6, Others: 0.3}, {CPU: 8}}
	if kept, calm := Quiet(busy); len(kept) != 4 || calm {
		t.Errorf("%d kept, calm %v", len(kept), calm)
	}
	base := []Slice{{CPU: 2}, {CPU: 2}, {CPU: 2}, {CPU: 2}}
	if ratios, dropped, calm := Pairs(busy, base, CPU); len(ratios) != 4 || dropped != 0 || calm {
		t.Errorf("%v, %d dropped, calm %v", ratios, dropped, calm)
	}
	if kept, calm := Quiet(base); len(kept) != 4 || !calm {
		t.Errorf("%d kept of a quiet machine, calm %v", len(kept), calm)
	}
	if kept, calm := Quiet([]Slice{{}, {Others: 1}, {}}); len(kept) != 2 || !calm {
		t.Errorf("%d kept, calm %v", len(kept), calm)
	}
}
