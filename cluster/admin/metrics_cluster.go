package admin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descNodes   = prometheus.NewDesc("sheepdog_nodes", "Nodes of the cluster by state, as this node knows.", []string{"state"}, nil)
	descLed     = prometheus.NewDesc("sheepdog_raft_has_leader", "1 while this node knows who leads raft. Without a leader nothing is agreed, and leases run out.", nil, nil)
	descSeconds = prometheus.NewDesc("sheepdog_recovery_seconds", "Seconds until all nodes are up to date, at the present pace; -1: not known.", nil, nil)
)

// clusterCollector says what is down and how long it will still take: what an alarm asks for. It reads the node at scrape time.
type clusterCollector struct {
	node    LocalNode
	samples *sampler
}

func (c clusterCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descNodes
	ch <- descLed
	ch <- descSeconds
}

func (c clusterCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	m := c.node.Map()
	count := map[string]int{"up": 0, "down": 0, "out": 0, "draining": 0}
	for _, n := range m.Nodes {
		if !n.Removed {
			count[nodeState(n)]++
		}
	}
	for state, n := range count {
		gauge(descNodes, float64(n), state)
	}
	gauge(descLed, number(c.node.Leader() != ""))
	p := sum(c.samples.progress(time.Now(), m))
	if p.Nodes == 0 {
		p.Seconds = 0
	}
	gauge(descSeconds, float64(p.Seconds))
}
