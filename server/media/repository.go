package media

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

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
	ContentType        string
	ContentDisposition string
}

// Options are what a Repository is made of.
type Options struct {
	Config Config
	Server matrix.ServerName
	DB     *storage.DB
	Blobs  storage.Blobs
	// Remote is nil on a server that does not federate.
	Remote Remote
	// PreviewClient opens the links of users, and must refuse private addresses also after redirects. Without
	// one there are no previews.
	PreviewClient *http.Client
	Log           *slog.Logger
	Now           func() time.Time
}

// Repository is the content repository of one server.
type Repository struct {
	Options
}

// New makes a repository. Run does its housekeeping; Close ends what it has begun.
func New(o Options) *Repository {
	return &Repository{Options: o}
}

// Run deletes what has expired or been pushed out of the cache, until ctx ends.
func (r *Repository) Run(ctx context.Context) {}

// Close ends the fetches under way and waits for them.
func (r *Repository) Close() {}

// Upload is a file on its way in.
type Upload struct {
	Body io.Reader
	// Size is the Content-Length, -1 if the client did not give one.
	Size int64
	// ContentType is what the client says; empty means application/octet-stream.
	ContentType string
	// Filename may be empty.
	Filename string
}

var errTodo = errors.New("not implemented")

// Upload stores a file of user's under a new media ID. It is M_TOO_LARGE (413) above the limit, M_FORBIDDEN above the
// user's quota, M_MISSING_PARAM for a file of no bytes at all.
// Spec v1.19 client-server-api/#post_matrixmediav3upload
func (r *Repository) Upload(ctx context.Context, user matrix.UserID, u Upload) (URI, error) {
	return URI{}, errTodo
}

// Create gives user a media ID to be uploaded to later, and the time until which that must happen. It is
// M_LIMIT_EXCEEDED for a user who holds too many such IDs.
// Spec v1.19 client-server-api/#post_matrixmediav1create
func (r *Repository) Create(ctx context.Context, user matrix.UserID) (uri URI, expires time.Time, err error) {
	return URI{}, time.Time{}, errTodo
}

// UploadTo stores a file under a media ID that user has got from Create. It is M_NOT_FOUND for an ID that was not
// created or has expired, M_FORBIDDEN for another user's, M_CANNOT_OVERWRITE_MEDIA (409) for one that has content;
// else as Upload. Spec v1.19 client-server-api/#put_matrixmediav3uploadservernamemediaid
func (r *Repository) UploadTo(ctx context.Context, user matrix.UserID, uri URI, u Upload) error {
	return errTodo
}

// Request says which file is to be opened and how.
type Request struct {
	URI URI
	// Wait is how long to wait for a file that is still to be uploaded, the query's timeout_ms. It is cut to the
	// configured maximum. DefaultWait is what the spec has for a request that does not say.
	Wait time.Duration
	// LocalOnly answers M_NOT_FOUND for what would have to be fetched from another server: the query's
	// allow_remote=false, and every request that another server makes.
	LocalOnly bool
	// Unauthenticated is a request on the deprecated paths: M_NOT_FOUND unless the configuration opens them.
	Unauthenticated bool
}

// DefaultWait is the timeout_ms of a request that does not give one.
const DefaultWait = 20 * time.Second

// Open opens a file, fetching it from the server that has it if need be; several who ask at the same time are served
// by one fetch, while it runs. The caller closes the file. The error is M_NOT_FOUND; M_NOT_YET_UPLOADED (504) if the
// wait was in vain; M_TOO_LARGE (502) for a file of another server's above our limit; 502 if that server does not answer.
// Spec v1.19 client-server-api/#get_matrixclientv1mediadownloadservernamemediaid
func (r *Repository) Open(ctx context.Context, req Request) (*File, error) {
	return nil, errTodo
}

// ThumbnailSize is the least size that a client wants to have.
type ThumbnailSize struct {
	Width, Height int // pixels, 1 to 10,000; more is cut
	// Crop asks for exactly the ratio of width and height; otherwise the image keeps its own ("scale").
	Crop bool
	// Animated asks for a moving thumbnail. None are made: an answer is always still.
	Animated bool
}

// ParseThumbnailSize reads the query of a thumbnail request. The error is M_INVALID_PARAM or M_MISSING_PARAM, 400.
func ParseThumbnailSize(query map[string][]string) (ThumbnailSize, error) {
	return ThumbnailSize{}, errTodo
}

// Thumbnail opens a thumbnail, making it if need be. Errors are those of Open, M_UNKNOWN (400) for what is no image
// that can be read, M_TOO_LARGE (413, of another server's media 502) for an image of too many pixels.
// Spec v1.19 client-server-api/#thumbnails
func (r *Repository) Thumbnail(ctx context.Context, req Request, size ThumbnailSize) (*File, error) {
	return nil, errTodo
}

// Preview is the OpenGraph description of the page at a URL, as JSON. at is the time for which it is wanted; zero is now.
// Spec v1.19 client-server-api/#get_matrixclientv1mediapreview_url
func (r *Repository) Preview(ctx context.Context, user matrix.UserID, url string, at time.Time) (json.RawMessage, error) {
	return nil, errTodo
}

// Delete removes a file, and its bytes if nothing else stands for them. It is M_NOT_FOUND if there is none.
func (r *Repository) Delete(ctx context.Context, uri URI) error { return errTodo }

// DeleteUploads removes all that user has uploaded and returns how many files that were.
func (r *Repository) DeleteUploads(ctx context.Context, user matrix.UserID) (int, error) {
	return 0, errTodo
}
