package api

import (
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"
)

// route is one endpoint. A route of which nothing else is said is for signed-in people who are not suspended. There are
// no guest accounts: registration refuses them.
type route struct {
	method string
	path   string // as the specification writes it: /_matrix/client/v3/rooms/{roomId}/leave
	handle func(*call) error

	auth      access
	suspended bool   // suspended accounts may call it
	locked    bool   // locked accounts may call it
	limit     action // per user, or per client address where nobody is signed in
	maxBody   int64  // bytes; 0 is Config.MaxBodyBytes
	aliases   []string
}

// access says whom a route is for.
type access uint8

const (
	signedIn access = iota // an access token is needed
	anybody                // a token is not looked at
	optional               // a token may be missing, but if it is there it must be valid
	admin                  // an access token of an administrator
)

// paths are all paths at which the route is served. What the specification has at v3 was at r0 before, and at api/v1
// or unstable before that; clients still ask for r0, and for v1 of media.
func (r route) paths() []string {
	paths := append([]string{r.path}, r.aliases...)
	if rest, ok := strings.CutPrefix(r.path, "/_matrix/client/v3/"); ok {
		paths = append(paths, "/_matrix/client/r0/"+rest)
	}
	if rest, ok := strings.CutPrefix(r.path, "/_matrix/media/v3/"); ok {
		paths = append(paths, "/_matrix/media/r0/"+rest, "/_matrix/media/v1/"+rest)
	}
	return paths
}

// routes are all endpoints, a function per module of the specification.
func (a *api) routes() []route {
	var all []route
	for _, module := range [][]route{
		a.discoveryRoutes(),
		a.sessionRoutes(),
		a.ssoRoutes(),
		a.registerRoutes(),
		a.accountRoutes(),
		a.deviceRoutes(),
		a.profileRoutes(),
		a.accountDataRoutes(),
		a.syncRoutes(),
		a.keyRoutes(),
		a.backupRoutes(),
		a.pushRoutes(),
		a.mediaRoutes(),
		a.voiceRoutes(),
		a.serviceRoutes(),
		a.adminRoutes(),
		a.purgeRoutes(),
		a.roomRoutes(),
		a.membershipRoutes(),
		a.sendRoutes(),
		a.historyRoutes(),
		a.searchRoutes(),
		a.directoryRoutes(),
		a.reportRoutes(),
		a.noticeRoutes(),
		a.notificationRoutes(),
	} {
		all = append(all, module...)
	}
	return all
}

// register puts routes into engine.
func (a *api) register(engine *gin.Engine, routes []route) {
	for i := range routes {
		r := &routes[i]
		observe := a.metrics.route(r.method, r.path)
		for _, path := range r.paths() {
			engine.Handle(r.method, ginPath(path), func(g *gin.Context) { a.serve(g, r, observe) })
		}
	}
}

// ginPath writes {roomId} as :roomId.
func ginPath(path string) string {
	return strings.NewReplacer("{", ":", "}", "").Replace(path)
}

const (
	get    = http.MethodGet
	put    = http.MethodPut
	post   = http.MethodPost
	del    = http.MethodDelete
	head   = http.MethodHead
	client = "/_matrix/client/v3"
	r0     = "/_matrix/client/r0"
)
