package media

import "time"

// Config is the section "media" of the configuration file.
type Config struct {
	// MaxUploadBytes is the largest upload; m.upload.size tells it to the clients.
	MaxUploadBytes int64 `mapstructure:"max_upload_bytes"`
	// MaxRemoteBytes is the largest file that is fetched from another server.
	MaxRemoteBytes int64 `mapstructure:"max_remote_bytes"`
	// UserQuotaBytes is how much one user may keep here; 0 is no limit.
	UserQuotaBytes int64 `mapstructure:"user_quota_bytes"`
	// MaxPendingUploads is how many media IDs a user may hold without having uploaded to them.
	MaxPendingUploads int `mapstructure:"max_pending_uploads"`
	// PendingExpiry is how long a media ID waits for its upload.
	PendingExpiry time.Duration `mapstructure:"pending_expiry"`
	// MaxWait is the longest that a download waits for an upload; clients ask for 20 s if they say nothing.
	MaxWait time.Duration `mapstructure:"max_wait"`

	// RemoteCacheBytes is how much media of other servers is kept; what was not read for longest goes first. 0 is no limit.
	RemoteCacheBytes int64 `mapstructure:"remote_cache_bytes"`
	// RemoteCacheAge removes media of other servers that nobody has read for so long. 0 keeps them.
	RemoteCacheAge time.Duration `mapstructure:"remote_cache_age"`
	// RemoteTimeout bounds one fetch from another server.
	RemoteTimeout time.Duration `mapstructure:"remote_timeout"`
	// RemoteFetches is how many files are fetched from other servers at the same time.
	RemoteFetches int `mapstructure:"remote_fetches"`

	// MaxImagePixels is the largest image (width times height) of which a thumbnail is made; a small file can
	// unfold into a very large one.
	MaxImagePixels int64 `mapstructure:"max_image_pixels"`
	// ThumbnailJobs is how many thumbnails are made at the same time; each may need 8 bytes of memory per pixel.
	ThumbnailJobs int `mapstructure:"thumbnail_jobs"`

	// VerifyRecordings refuses uploads that are Ogg, WebM or MP4 files of one Opus stream and are damaged, forged, chained
	// to or hidden in another file, or have more than two channels.
	VerifyRecordings bool `mapstructure:"verify_recordings"`
	// Renditions lets clients have a recording in another container (ogg, webm or mp4), as far as they can play it.
	Renditions bool `mapstructure:"renditions"`
	// MaxDecoded is the longest recording whose waveform is computed; a minute takes about a quarter of a second of
	// one core. 0 computes none.
	MaxDecoded time.Duration `mapstructure:"max_decoded"`

	// UnauthenticatedDownloads opens the deprecated /_matrix/media/v3/download and thumbnail paths, on which everyone
	// who knows a media ID may read it, for old clients and for servers that speak nothing newer than Matrix 1.10.
	UnauthenticatedDownloads bool `mapstructure:"unauthenticated_downloads"`

	// URLPreviews lets clients ask for previews of links. The server then opens links that its users write.
	URLPreviews bool `mapstructure:"url_previews"`
	// URLPreviewMaxBytes is the largest page or picture that is read for a preview.
	URLPreviewMaxBytes int64 `mapstructure:"url_preview_max_bytes"`
	// URLPreviewTimeout bounds the making of one preview.
	URLPreviewTimeout time.Duration `mapstructure:"url_preview_timeout"`
}

// DefaultConfig is what holds where the configuration file says nothing.
func DefaultConfig() Config {
	return Config{
		MaxUploadBytes:     50 << 20,
		MaxRemoteBytes:     100 << 20,
		MaxPendingUploads:  20,
		PendingExpiry:      24 * time.Hour,
		MaxWait:            60 * time.Second,
		RemoteCacheBytes:   10 << 30,
		RemoteTimeout:      5 * time.Minute,
		RemoteFetches:      32,
		MaxImagePixels:     32 << 20,
		ThumbnailJobs:      2,
		VerifyRecordings:   true,
		Renditions:         true,
		MaxDecoded:         10 * time.Minute,
		URLPreviewMaxBytes: 10 << 20,
		URLPreviewTimeout:  20 * time.Second,
	}
}
