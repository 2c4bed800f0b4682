package media

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// Remote fetches media from other servers. *federation.Client implements it.
type Remote interface {
	// DownloadMedia opens a file of server's. The server may wait up to wait for a file that is still to be uploaded.
	// An error that the server itself gave is a *matrix.Error with its code (M_NOT_FOUND, M_NOT_YET_UPLOADED,
	// M_TOO_LARGE); any other says that the server could not be asked. ctx bounds the reading of the body as well.
	// Spec v1.19 server-server-api/#get_matrixfederationv1mediadownloadmediaid
	DownloadMedia(ctx context.Context, server matrix.ServerName, mediaID string, wait time.Duration) (*RemoteFile, error)
	// ThumbnailMedia opens a thumbnail that server makes, with errors as above.
	// Spec v1.19 server-server-api/#get_matrixfederationv1mediathumbnailmediaid
	ThumbnailMedia(ctx context.Context, server matrix.ServerName, mediaID string, size ThumbnailSize, wait time.Duration) (*RemoteFile, error)
}

// RemoteFile is the second part of another server's answer. Everything in it is that server's claim; the size is not
// limited yet: the repository does that.
type RemoteFile struct {
	Body               io.ReadCloser
	Live               bool // it is being recorded: how long it takes is not up to the server
	ContentType        string
	ContentDisposition string
}

// Options are what a Repository is made of.
type Options struct {
	Config Config
	Live   LiveConfig
	Server matrix.ServerName
	DB     *storage.DB
	Blobs  storage.Blobs
	// Remote is nil on a server that does not federate.
	Remote Remote
	// PreviewClient opens the links of users, and must refuse private addresses also after redirects. Without
	// one there are no previews.
	PreviewClient *http.Client
	Log           *slog.Logger
	// Now is time.Now if it is nil.
	Now func() time.Time
}

// Repository is the content repository of one server.
type Repository struct {
	Options

	// life ends with Close; what outlives a request, the fetches, runs under it and is counted in running.
	life    context.Context
	end     context.CancelFunc
	running sync.WaitGroup

	fetchSlots chan struct{}
	imageSlots chan struct{}
	soundSlots chan struct{}
	making     singleflight.Group // thumbnails, previews and waveforms by what they are made of

	mu       sync.Mutex
	fetches  map[URI]*fetch
	liveFrom map[matrix.ServerName]int // how many of the fetches are of live recordings
	lives    map[string]*live          // by media ID
	uploaded chan struct{}             // closed, and replaced, whenever an upload to a created ID has ended, or the first sound of a live one is there
	used     map[URI]time.Time         // media of other servers read since the last sweep
	linkKey  []byte                    // nil until the first link
	closed   bool
}

// New makes a repository. Run does its housekeeping; Close ends what it has begun.
func New(o Options) *Repository {
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Repository{
		Options:    o,
		fetchSlots: make(chan struct{}, max(o.Config.RemoteFetches, 1)),
		imageSlots: make(chan struct{}, max(o.Config.ThumbnailJobs, 1)),
		soundSlots: make(chan struct{}, 2),
		fetches:    map[URI]*fetch{},
		lives:      map[string]*live{},
		liveFrom:   map[matrix.ServerName]int{},
		uploaded:   make(chan struct{}),
		used:       map[URI]time.Time{},
	}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// begin counts something that outlives its request, until running.Done, unless the repository is being closed.
func (r *Repository) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return matrix.NewError(503, "M_UNKNOWN", "the server is being stopped")
	}
	r.running.Add(1)
	return nil
}

// Close ends the fetches under way and waits for them; it returns nil. No request may come in any more.
func (r *Repository) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.end()
	r.running.Wait()
	return nil
}
