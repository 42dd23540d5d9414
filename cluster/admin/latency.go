package admin

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// latencyBuckets are powers of two of microseconds: 1 µs to 33 s, then the rest.
const latencyBuckets = 26

// Latency counts how long one kind of request takes. Observe costs some nanoseconds, allocates nothing and takes no lock, so that it may be called
// for every request.
type Latency struct {
	op      string
	buckets [latencyBuckets + 1]atomic.Uint64
	nanos   atomic.Uint64
	bytes   atomic.Uint64
	failed  atomic.Uint64
}

// NewLatency returns the counter for requests called op.
func NewLatency(op string) *Latency { return &Latency{op: op} }

// Observe counts one request.
func (l *Latency) Observe(bytes uint64, took time.Duration, failed bool) {
	took = max(took, 0)
	l.buckets[min(bits.Len64(uint64(took.Microseconds())), latencyBuckets)].Add(1) // bucket i: less than 2^i µs
	l.nanos.Add(uint64(took))
	l.bytes.Add(bytes)
	if failed {
		l.failed.Add(1)
	}
}

var (
	descLatency = prometheus.NewDesc("sheepdog_nbd_request_seconds", "Time from a request's arrival until its reply was written.", []string{"op"}, nil)
	descBytes   = prometheus.NewDesc("sheepdog_nbd_bytes_total", "Bytes that requests were about.", []string{"op"}, nil)
	descErrors  = prometheus.NewDesc("sheepdog_nbd_errors_total", "Requests that were answered with an error.", []string{"op"}, nil)
)

func (l *Latency) Describe(ch chan<- *prometheus.Desc) {
	ch <- descLatency
	ch <- descBytes
	ch <- descErrors
}

func (l *Latency) Collect(ch chan<- prometheus.Metric) {
	cumulated := make(map[float64]uint64, latencyBuckets)
	var count uint64
	for i := range l.buckets {
		count += l.buckets[i].Load()
		if i < latencyBuckets {
			cumulated[float64(uint64(1)<<i)/1e6] = count
		}
	}
	seconds := time.Duration(l.nanos.Load()).Seconds()
	ch <- prometheus.MustNewConstHistogram(descLatency, count, seconds, cumulated, l.op)
	ch <- prometheus.MustNewConstMetric(descBytes, prometheus.CounterValue, float64(l.bytes.Load()), l.op)
	ch <- prometheus.MustNewConstMetric(descErrors, prometheus.CounterValue, float64(l.failed.Load()), l.op)
}

// Latencies are the counters of one server, to be registered as one.
type Latencies []*Latency

func (ls Latencies) Describe(ch chan<- *prometheus.Desc) { new(Latency).Describe(ch) }

func (ls Latencies) Collect(ch chan<- prometheus.Metric) {
	for _, l := range ls {
		l.Collect(ch)
	}
}
