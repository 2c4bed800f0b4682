package federation

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics measures what passes through this door. No label names a server: there may be many thousands.
type metrics struct {
	servedTook   *prometheus.HistogramVec // by method and route
	answered     *prometheus.CounterVec   // by method, route and status
	sentTook     prometheus.Histogram
	sentBy       *prometheus.CounterVec // by status, "none" for no answer
	transactions prometheus.Counter
	pdus, edus   prometheus.Counter
}

// newMetrics may be given nil; then what is measured is told to nobody.
func newMetrics(to prometheus.Registerer) *metrics {
	buckets := []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30}
	m := &metrics{
		servedTook: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "parley_federation_request_seconds",
			Help: "Time from request to answer of requests by other servers.", Buckets: buckets}, []string{"method", "route"}),
		answered: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "parley_federation_requests_total",
			Help: "Requests by other servers by route and status of the answer."}, []string{"method", "route", "status"}),
		sentTook: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "parley_federation_sent_request_seconds",
			Help: "Time from request to the start of the answer of requests to other servers.", Buckets: buckets}),
		sentBy: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "parley_federation_sent_requests_total",
			Help: "Requests to other servers by status of the answer; none if there was no answer."}, []string{"status"}),
		transactions: prometheus.NewCounter(prometheus.CounterOpts{Name: "parley_federation_sent_transactions_total",
			Help: "Transactions sent, those that failed and were sent again included."}),
		pdus: prometheus.NewCounter(prometheus.CounterOpts{Name: "parley_federation_received_pdus_total", Help: "Events in transactions of other servers."}),
		edus: prometheus.NewCounter(prometheus.CounterOpts{Name: "parley_federation_received_edus_total", Help: "EDUs in transactions of other servers."}),
	}
	if to != nil {
		to.MustRegister(m.servedTook, m.answered, m.sentTook, m.sentBy, m.transactions, m.pdus, m.edus)
	}
	return m
}

func (m *metrics) served(r route, status int, took time.Duration) {
	path := r.path
	if path == "" {
		path = "unknown"
	}
	m.servedTook.WithLabelValues(r.method, path).Observe(took.Seconds())
	m.answered.WithLabelValues(r.method, path, strconv.Itoa(status)).Inc()
}

func (m *metrics) sent(answer *http.Response, took time.Duration) {
	status := "none"
	if answer != nil {
		status = strconv.Itoa(answer.StatusCode)
	}
	m.sentTook.Observe(took.Seconds())
	m.sentBy.WithLabelValues(status).Inc()
}

func (m *metrics) transaction() { m.transactions.Inc() }

func (m *metrics) received(pdus, edus int) {
	m.pdus.Add(float64(pdus))
	m.edus.Add(float64(edus))
}
