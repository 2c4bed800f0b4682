package api

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics measures requests. The zero value measures nothing.
type metrics struct {
	took     *prometheus.HistogramVec // by method and route
	answered *prometheus.CounterVec   // by method, route and status
}

// observer takes note of one answered request.
type observer func(status int, took time.Duration)

func newMetrics(to prometheus.Registerer) *metrics {
	if to == nil {
		return &metrics{}
	}
	m := &metrics{
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "parley_client_request_seconds",
			Help:    "Time from request to answer by route; /sync waits as long as nothing happens.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30},
		}, []string{"method", "route"}),
		answered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "parley_client_requests_total",
			Help: "Requests of clients by route and status of the answer.",
		}, []string{"method", "route", "status"}),
	}
	to.MustRegister(m.took, m.answered)
	return m
}

// route is the observer of one route; its usual labels are looked up once.
func (m *metrics) route(method, path string) observer {
	if m.took == nil {
		return func(int, time.Duration) {}
	}
	took, ok := m.took.WithLabelValues(method, path), m.answered.WithLabelValues(method, path, "200")
	return func(status int, d time.Duration) {
		took.Observe(d.Seconds())
		if status == 200 {
			ok.Inc()
			return
		}
		m.answered.WithLabelValues(method, path, strconv.Itoa(status)).Inc()
	}
}
