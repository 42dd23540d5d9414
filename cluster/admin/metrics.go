package admin

import (
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// collector reads the node at scrape time: nothing is counted twice, and nothing on the data path knows Prometheus.
type collector struct{ node LocalNode }

var (
	descNode     = prometheus.NewDesc("sheepdog_node_info", "This node: constantly 1, its name in the labels.", []string{"node", "version"}, nil)
	descLease    = prometheus.NewDesc("sheepdog_lease", "1 while this node holds its lease and may serve.", nil, nil)
	descLeader   = prometheus.NewDesc("sheepdog_raft_leader", "1 while this node leads raft.", nil, nil)
	descIndex    = prometheus.NewDesc("sheepdog_raft_applied_index", "Raft index that this node has applied.", nil, nil)
	descEpoch    = prometheus.NewDesc("sheepdog_epoch", "Epoch of the agreed map.", nil, nil)
	descGroups   = prometheus.NewDesc("sheepdog_groups", "Placement groups of the cluster by health.", []string{"state"}, nil)
	descRoles    = prometheus.NewDesc("sheepdog_node_groups", "Placement groups by this node's role in them.", []string{"role"}, nil)
	descSpace    = prometheus.NewDesc("sheepdog_disk_bytes", "Space of a disk.", []string{"disk", "kind"}, nil)
	descFailed   = prometheus.NewDesc("sheepdog_disk_failed", "1 if the disk has failed.", []string{"disk"}, nil)
	descFull     = prometheus.NewDesc("sheepdog_disk_full", "1 if the disk is full and writes get ENOSPC.", []string{"disk"}, nil)
	descNear     = prometheus.NewDesc("sheepdog_disk_near_full", "1 if the disk is full or will be soon.", []string{"disk"}, nil)
	descInodes   = prometheus.NewDesc("sheepdog_disk_inodes_free", "Inodes that are left on the disk's file system, where it counts them.", []string{"disk"}, nil)
	descOnDisk   = prometheus.NewDesc("sheepdog_disk_groups", "Placement groups whose copies are on the disk.", []string{"disk"}, nil)
	descScrubbed = prometheus.NewDesc("sheepdog_scrub_blocks_total", "Blocks that the scrub has read since the start.", []string{"disk"}, nil)
	descScrubBad = prometheus.NewDesc("sheepdog_scrub_bad_total", "Bad blocks and tables that the scrub has found since the start.", []string{"disk"}, nil)
	descRounds   = prometheus.NewDesc("sheepdog_scrub_rounds_total", "Whole passes of the scrub since the start.", []string{"disk"}, nil)
	descRot      = prometheus.NewDesc("sheepdog_scrub_results_total", "What the scrub of this node's disks found, by what became of it, and what it compared with other replicas.", []string{"what"}, nil)
	descRecovery = prometheus.NewDesc("sheepdog_recovery_groups", "Groups of nodes that are being brought up to date, by what is done.", []string{"what"}, nil)
	descRecNodes = prometheus.NewDesc("sheepdog_recovery_nodes", "Nodes that are being brought up to date.", nil, nil)
	descCopied   = prometheus.NewDesc("sheepdog_recovery_bytes_total", "Bytes that this node has copied to others to bring them up to date.", nil, nil)
	descCounter  = prometheus.NewDesc("sheepdog_stat", "What engine, store and client count, by name; most only rise.", []string{"name"}, nil)
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descNode, descLease, descLeader, descIndex, descEpoch, descGroups, descRoles, descSpace, descFailed, descFull, descNear, descInodes, descOnDisk, descScrubbed, descScrubBad, descRounds, descRot,
		descRecovery, descRecNodes, descCopied, descCounter} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	m, self := c.node.Map(), c.node.Self()
	gauge(descNode, 1, strconv.FormatUint(uint64(c.node.ID()), 10), self.Version)
	gauge(descLease, number(self.Lease))
	gauge(descLeader, number(self.Leader))
	gauge(descIndex, float64(m.Index))
	gauge(descEpoch, float64(m.Epoch))
	h := HealthOf(m)
	for _, s := range []struct {
		name  string
		count int
	}{{"full", h.Full}, {"moving", h.Moving}, {"degraded", h.Degraded}, {"stalled", h.Stalled}, {"waiting", h.Waiting}, {"lost", h.Lost}} {
		gauge(descGroups, float64(s.count), s.name)
	}
	for _, n := range nodesOf(m) {
		if n.ID == c.node.ID() {
			gauge(descRoles, float64(n.Primaries), "primary")
			gauge(descRoles, float64(n.InSync), "insync")
			gauge(descRoles, float64(n.Target), "target")
		}
	}
	for _, d := range self.Disks {
		gauge(descSpace, float64(d.Size), d.Path, "size")
		gauge(descSpace, float64(d.Used), d.Path, "used")
		gauge(descSpace, float64(d.Avail), d.Path, "avail")
		gauge(descFailed, number(d.Fault != ""), d.Path)
		gauge(descFull, number(d.Full), d.Path)
		gauge(descNear, number(d.Near), d.Path)
		if d.Inodes >= 0 {
			gauge(descInodes, float64(d.Inodes), d.Path)
		}
		gauge(descOnDisk, float64(d.Groups), d.Path)
		for desc, v := range map[*prometheus.Desc]int64{descScrubbed: d.Scrub.Blocks, descScrubBad: d.Scrub.Bad, descRounds: d.Scrub.Rounds} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), d.Path)
		}
	}
	for what, v := range map[string]uint64{"repaired": self.Rot.Repaired, "unrepairable": self.Rot.Unrepairable, "compared": self.Rot.Compared, "differ": self.Rot.Differ} {
		ch <- prometheus.MustNewConstMetric(descRot, prometheus.CounterValue, float64(v), what)
	}
	p := sum(lacking(m))
	gauge(descRecNodes, float64(p.Nodes))
	gauge(descRecovery, float64(p.Total-p.Left), "done")
	gauge(descRecovery, float64(p.Left), "left")
	ch <- prometheus.MustNewConstMetric(descCopied, prometheus.CounterValue, float64(c.node.ResyncBytes()))
	for name, v := range self.Counters {
		ch <- prometheus.MustNewConstMetric(descCounter, prometheus.UntypedValue, float64(v), name)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// metricsHandler serves the node's metrics and Go's own.
func metricsHandler(node LocalNode, samples *sampler, also []Metrics, log *slog.Logger) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{node}, clusterCollector{node, samples}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.MustRegister(also...)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), EnableOpenMetrics: true})
}

// Metrics are more of what /metrics tells.
type Metrics = prometheus.Collector

// CertificateExpiry is the metric that says when the certificate runs out that NBD clients are shown over TLS, so that an alarm can come before.
func CertificateExpiry(notAfter func() time.Time) Metrics {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sheepdog_nbd_tls_certificate_expiration_timestamp_seconds",
		Help: "When the certificate runs out that NBD clients are shown, in seconds since 1970."}, func() float64 { return float64(notAfter().Unix()) })
}
