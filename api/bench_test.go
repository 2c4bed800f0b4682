package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// BenchmarkFrame is what every request costs before and after its handler: routing, access token, limits, body, answer,
// metrics.
func BenchmarkFrame(b *testing.B) {
	cfg := DefaultConfig()
	cfg.RateLimits.Message = Rate{PerSecond: 1e9, Burst: 1e9}
	w := newWorld(b, cfg)
	alice := w.person("alice")
	w.api.metrics = newMetrics(prometheus.NewRegistry())
	engine, err := w.api.engine([]route{{method: put, path: client + "/rooms/{roomId}/send/{eventType}/{txnId}", limit: limitMessage,
		handle: func(c *call) error {
			if _, err := c.roomID(); err != nil {
				return err
			}
			if _, err := c.object(); err != nil {
				return err
			}
			return c.sent("$0123456789012345678901234567890123456789012", nil)
		}}})
	if err != nil {
		b.Fatal(err)
	}
	body := `{"msgtype":"m.text","body":"` + strings.Repeat("hello ", 50) + `"}`
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(put, "/_matrix/client/v3/rooms/!room:test/send/m.room.message/txn", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+alice.token)
		answer := httptest.NewRecorder()
		engine.ServeHTTP(answer, r)
		if answer.Code != http.StatusOK {
			b.Fatal(answer.Body)
		}
	}
}
