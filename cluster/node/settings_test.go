package node

import (
	"testing"
	"time"
)

// What `cluster set` changes has its effect while the cluster runs. (recovery-speed: package vdi; scrub-speed: cmd/sheep's scripts.)

func TestSettingRebuildAfter(t *testing.T) {
	sim(t, func(t *testing.T) {
		w := newWorld(t, 5)
		defer w.end()
		w.formatted(3)
		w.set("n1", "rebuild-after", "20s")
		h := w.others(w.leader())[0]
		id := w.nodes[h].Self().Node
		w.crash(h)
		w.until(5*time.Second, "it is down", func() bool { return !w.newest().Node(id).Up })
		w.pass(10 * time.Second)
		w.set(w.leader(), "rebuild-after", "1h") // the clock runs already
		w.pass(30 * time.Second)
		if w.newest().Node(id).Out {
			t.Fatal("given up before its time")
		}
		w.set(w.leader(), "rebuild-after", "30s")
		w.until(time.Second, "given up: it is down for longer than that", func() bool { return w.newest().Node(id).Out })
		w.until(20*time.Second, "its groups have three copies elsewhere", func() bool { return w.whole(0) })
	})
}

func TestSettingResumeWait(t *testing.T) {
	sim(t, func(t *testing.T) {
		for _, wait := range []time.Duration{3 * time.Second, 12 * time.Second} {
			w := newWorld(t, 3)
			w.formatted(3)
			w.set("n1", "resume-wait", wait.String())
			for _, h := range w.hosts {
				w.crash(h)
			}
			w.pass(time.Second)
			w.run("n1")
			w.run("n2")
			w.until(10*time.Second, "two are back", func() bool { return w.nodes["n1"].Leased() && w.nodes["n2"].Leased() })
			d := w.until(wait+5*time.Second, "the groups go on without the third", w.served)
			if d < wait-time.Second || d > wait+2*time.Second {
				t.Errorf("they waited %s, resume-wait is %s", d, wait)
			}
			w.end()
		}
	})
}
