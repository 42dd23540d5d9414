package vdi

import (
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// TestSettingRecoverySpeed: resync takes no more than it may, and more as soon as it may.
func TestSettingRecoverySpeed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := newSite(t, 7)
		c, _ := s.client("program")
		const size = 32 << 20
		d, want := s.create(c, "alpha", size), make([]byte, size)
		set := func(key, speed string) {
			s.must(&state.Command{Set: &state.Set{Key: key, Value: speed}})
		}
		set("recovery-floor", "1K") // it would count where it is higher than the ceiling
		var took []time.Duration
		for round, speed := range []string{"1M", "64M"} {
			s.crash(2)
			for i := range want {
				want[i] = byte(i>>12) + byte(round) + 1
			}
			for at := 0; at < size; at += 1 << 20 {
				if _, err := d.WriteAt(want[at:at+1<<20], int64(at)); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
			set("recovery-speed", speed)
			time.Sleep(3 * time.Second)
			s.run(2)
			began := time.Now()
			s.whole()
			took = append(took, time.Since(began))
			t.Logf("%s: %s", speed, took[round])
		}
		// Each of two primaries may copy so much; 32 MiB are missing.
		if took[0] < 8*time.Second || took[0] > 60*time.Second {
			t.Errorf("at 1 MiB/s a node it took %s", took[0])
		}
		if took[1] > took[0]/4 {
			t.Errorf("at 64 MiB/s it took %s, at 1 MiB/s %s", took[1], took[0])
		}
		compare(t, d.Stream, want, "afterwards")
	})
}
