package main

import (
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// plainEvery is how often a line is printed where there is no terminal to draw on.
const plainEvery = 5 * time.Second

// progress is a bar on a terminal and now and then a line elsewhere; on stderr, so that stdout may be data.
type progress struct {
	what  string
	bytes bool
	out   io.Writer
	pool  *mpb.Progress
	bar   *mpb.Bar
	last  time.Time

	silent bool
}

// newProgress begins; bytes says that the numbers are bytes.
func (s *shell) newProgress(what string, bytes bool) *progress {
	p := &progress{what: what, bytes: bytes, out: s.err, last: time.Now()}
	if terminal(s.err) {
		p.pool = mpb.New(mpb.WithOutput(s.err), mpb.WithWidth(64), mpb.WithAutoRefresh())
	}
	return p
}

// set says how far it is.
func (p *progress) set(done, total int64) {
	if p.silent {
		return
	}
	if p.pool != nil {
		if p.bar == nil {
			p.bar = p.pool.AddBar(total, p.decorators()...)
		}
		p.bar.SetTotal(total, false)
		p.bar.SetCurrent(done)
		return
	}
	if time.Since(p.last) < plainEvery {
		return
	}
	p.last = time.Now()
	percent := 0.0
	if total > 0 {
		percent = 100 * float64(done) / float64(total)
	}
	fmt.Fprintf(p.out, "%s: %d of %d (%.1f%%)\n", p.what, done, total, percent)
}

func (p *progress) decorators() []mpb.BarOption {
	counters, speed := decor.CountersNoUnit("%d / %d"), decor.AverageSpeed(0, "%.0f/s")
	if p.bytes {
		counters, speed = decor.CountersKibiByte("% .1f / % .1f"), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")
	}
	return []mpb.BarOption{
		mpb.PrependDecorators(decor.Name(p.what+" "), counters),
		mpb.AppendDecorators(decor.Percentage(decor.WC{W: 5}), decor.Name(" "), speed, decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)),
		mpb.BarRemoveOnComplete(),
	}
}

// end takes the bar away.
func (p *progress) end() {
	if p.pool == nil {
		return
	}
	if p.bar != nil {
		p.bar.Abort(true)
	}
	p.pool.Wait()
}
