package api

import (
	"net/http"
	"net/http/httptest"
	"strconv"
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

// BenchmarkSend is a message from request to durable answer, one after the other in one room.
func BenchmarkSend(b *testing.B) {
	w := newWorld(b, quiet())
	alice := w.person("alice")
	room := alice.must(post, "/createRoom", map[string]any{})["room_id"].(string)
	path := client + "/rooms/" + room + "/send/m.room.message/"
	body := `{"msgtype":"m.text","body":"` + strings.Repeat("hello ", 20) + `"}`
	header := []string{"Authorization", "Bearer " + alice.token}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		if answer := ask(w.handler, put, path+strconv.Itoa(n), body, header...); answer.Code != http.StatusOK {
			b.Fatal(answer.Body)
		}
	}
}
