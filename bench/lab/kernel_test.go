package lab

import (
	"testing"
	"time"
)

func TestSchedstatIsReadInNanoseconds(t *testing.T) {
	if d, err := parseSchedstat([]byte("817670 69353 2\n")); err != nil || d != 817670 {
		t.Errorf("%v, %v", d, err)
	}
	for _, bad := range []string{"", "x 1 2\n", "\n"} {
		if d, err := parseSchedstat([]byte(bad)); err == nil {
			t.Errorf("%q is %v", bad, d)
		}
	}
}

// Idle and waiting for a disk are no work; what the hypervisor took away is; a guest's time is in the first figure.
func TestTheMachinesTimeIsReadWithoutItsIdleness(t *testing.T) {
	d, err := parseStat([]byte("cpu  100 20 3 9999 888 7 6 5 50 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"))
	if want := (100 + 20 + 3 + 7 + 6 + 5) * 10 * time.Millisecond; err != nil || d != want {
		t.Errorf("%v, want %v; %v", d, want, err)
	}
	for _, bad := range []string{"", "cpu 1 2 3\n", "cpu 1 2 3 4 5 6 7 x 9 0\n", "intr 1 2 3 4 5 6 7 8 9\n"} {
		if d, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is %v", bad, d)
		}
	}
}

func TestMemoryIsReadInMiB(t *testing.T) {
	m, err := parseRollup([]byte("00400000-7fff r-xp 00000000 00:00 0   [rollup]\nRss:  51200 kB\nPss: 50000 kB\nPss_Anon:            10240 kB\nLocked:  0 kB\n"))
	if err != nil || m != (Memory{Own: 10, RSS: 50}) {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := parseRollup([]byte("Rss: 1 kB\n")); err == nil {
		t.Errorf("without Pss_Anon: %+v", m)
	}
}

func TestTheShareOfOthersIsWhatWeHadNot(t *testing.T) {
	began := time.Now()
	from := Mark{at: began, busy: time.Hour, ours: time.Minute}
	share := func(busy, ours time.Duration) float64 {
		return Others(from, Mark{at: began.Add(time.Second), busy: from.busy + busy, ours: from.ours + ours})
	}
	if all := share(time.Second, 0); all <= 0 || all > 1 {
		t.Errorf("a second of somebody's is %v of the machine", all)
	}
	if none := share(time.Second, time.Second); none != 0 {
		t.Errorf("a second of ours leaves %v", none)
	}
	// The machine's time is sampled, ours is exact: a little less than nothing is nothing.
	if less := share(time.Second, 1010*time.Millisecond); less != 0 {
		t.Errorf("%v", less)
	}
}
