package storage

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"time"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// What adding a file can meet.
var (
	// ErrBlobDoomed says that the blob is just being deleted. Whoever wants to refer to it must wait until that is
	// over, put its bytes into the store again and try again.
	ErrBlobDoomed = errors.New("the blob is being deleted")
	// ErrMediaExists says that the media ID has content already.
	ErrMediaExists = errors.New("the media ID has content")
	// ErrQuota says that the user would have more than is allowed.
	ErrQuota = errors.New("over the quota")
)

// Media describes a file: the row behind an mxc:// URI.
type Media struct {
	Server      matrix.ServerName
	MediaID     string
	Hash        BlobHash // zero until it is uploaded
	Size        int64    // bytes
	ContentType string
	Filename    string
	Uploader    matrix.UserID // empty for media of other servers
	Created     time.Time
	Expires     time.Time // when an ID without an upload is forgotten; else zero
}

type mediaRow struct {
	Server      string
	MediaID     string
	Hash        string
	Size        int64
	ContentType string
	Filename    string
	Uploader    string
	CreatedMS   int64 `gorm:"column:created_ms"`
	ExpiresMS   int64 `gorm:"column:expires_ms"`
	UsedMS      int64 `gorm:"column:used_ms"`
}

func (mediaRow) TableName() string { return "media" }

func (m *Media) row() *mediaRow {
	row := &mediaRow{
		Server: string(m.Server), MediaID: m.MediaID, Size: m.Size, ContentType: m.ContentType, Filename: m.Filename,
		Uploader: string(m.Uploader), CreatedMS: m.Created.UnixMilli(), UsedMS: m.Created.UnixMilli(),
	}
	if !m.Hash.IsZero() {
		row.Hash = m.Hash.String()
	}
	if !m.Expires.IsZero() {
		row.ExpiresMS = m.Expires.UnixMilli()
	}
	return row
}

func (row *mediaRow) media() (Media, error) {
	m := Media{
		Server: matrix.ServerName(row.Server), MediaID: row.MediaID, Size: row.Size, ContentType: row.ContentType,
		Filename: row.Filename, Uploader: matrix.UserID(row.Uploader), Created: time.UnixMilli(row.CreatedMS),
	}
	if row.ExpiresMS != 0 {
		m.Expires = time.UnixMilli(row.ExpiresMS)
	}
	var err error
	if row.Hash != "" {
		m.Hash, err = ParseBlobHash(row.Hash)
	}
	return m, err
}

// Media finds a file, also one that is still to be uploaded and one whose ID has expired but was not swept up yet.
// It is ErrNotFound if there is none.
func (db *DB) Media(ctx context.Context, server matrix.ServerName, mediaID string) (Media, error) {
	row, err := takeMedia(db.Read(ctx), server, mediaID)
	if err != nil {
		return Media{}, err
	}
	return row.media()
}

func takeMedia(tx *gorm.DB, server matrix.ServerName, mediaID string) (*mediaRow, error) {
	var row mediaRow
	err := tx.Where("server = ? AND media_id = ?", string(server), mediaID).Take(&row).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, ErrNotFound
	}
	return &row, err
}

// ReserveMedia adds a media ID without content that expires at m.Expires. It is ErrQuota if the uploader has maxPending
// others that have not expired at m.Created.
func (db *DB) ReserveMedia(ctx context.Context, m Media, maxPending int) error {
	return db.Write(ctx, func(tx *Tx) error {
		var pending int
		err := tx.Raw("SELECT count(*) FROM media WHERE uploader = ? AND expires_ms > ?",
			string(m.Uploader), m.Created.UnixMilli()).Scan(&pending).Error
		if err != nil {
			return err
		}
		if pending >= maxPending {
			return ErrQuota
		}
		return tx.Create(m.row()).Error
	})
}

// AddMedia adds a file whose blob has been committed to the store, or fills the ID that ReserveMedia gave out. It is
// ErrMediaExists if there is content already, ErrQuota if the uploader would have more than quota bytes (0: no limit),
// ErrBlobDoomed if the blob must be put into the store again. When it returns nil, the caller must still make sure that
// the blob is in the store: it may have been deleted between commit and AddMedia, but not after. recording is what was
// counted in the blob if it is one, else nil.
func (db *DB) AddMedia(ctx context.Context, m Media, recording *Recording, quota int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		old, err := takeMedia(tx.DB, m.Server, m.MediaID)
		switch {
		case err == nil && old.Hash != "":
			return ErrMediaExists
		case err != nil && !errors.Is(err, ErrNotFound):
			return err
		}
		if old != nil && old.ExpiresMS == 0 { // it is being recorded live
			return ErrMediaExists
		}
		if quota > 0 {
			var used int64
			err := tx.Raw("SELECT coalesce(sum(size), 0) FROM media WHERE uploader = ?", string(m.Uploader)).Scan(&used).Error
			if err != nil {
				return err
			}
			if used+m.Size > quota {
				return ErrQuota
			}
		}
		if err := tx.referToBlob(m.Hash, m.Size); err != nil {
			return err
		}
		if recording != nil {
			if err := tx.addRecording(m.Hash, *recording); err != nil {
				return err
			}
		}
		row := m.row()
		if old == nil {
			return tx.Create(row).Error
		}
		return tx.Where("server = ? AND media_id = ?", row.Server, row.MediaID).Select("*").Updates(row).Error
	})
}

// UploadedBytes is how much a user has here.
func (db *DB) UploadedBytes(ctx context.Context, user matrix.UserID) (int64, error) {
	var used int64
	err := db.Read(ctx).Raw("SELECT coalesce(sum(size), 0) FROM media WHERE uploader = ?", string(user)).Scan(&used).Error
	return used, err
}

// TouchMedia notes when media of other servers was last read.
func (db *DB) TouchMedia(ctx context.Context, server matrix.ServerName, mediaID string, used time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("UPDATE media SET used_ms = ? WHERE server = ? AND media_id = ? AND uploader = '' AND used_ms < ?",
			used.UnixMilli(), string(server), mediaID, used.UnixMilli()).Error
	})
}

// DeleteMedia removes a file's row and dooms its blob if that was the last one: ClaimDoomedBlobs has it then. It is
// ErrNotFound if there is no such file, ErrHeld if a legal hold keeps it.
func (db *DB) DeleteMedia(ctx context.Context, server matrix.ServerName, mediaID string, now time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		row, err := takeMedia(tx.DB, server, mediaID)
		if err != nil {
			return err
		}
		if held, err := heldMedia(tx.DB, row); err != nil {
			return err
		} else if held {
			return ErrHeld
		}
		return tx.deleteMedia([]mediaRow{*row}, now)
	})
}

// DeleteUploads removes up to limit files of a user, but those under a legal hold, and returns how many that were.
func (db *DB) DeleteUploads(ctx context.Context, user matrix.UserID, limit int, now time.Time) (n int, err error) {
	err = db.deleteMediaWhere(ctx, now, &n, limit, "uploader = ?"+notHeld, "media_id", string(user))
	return n, err
}

// DeleteExpiredMedia removes up to limit media IDs to which nothing was uploaded in time.
func (db *DB) DeleteExpiredMedia(ctx context.Context, now time.Time, limit int) (n int, err error) {
	err = db.deleteMediaWhere(ctx, now, &n, limit, "expires_ms > 0 AND expires_ms <= ?", "expires_ms", now.UnixMilli())
	return n, err
}

// DeleteRemoteMedia removes up to limit files of other servers that were last read before the given time, those first
// that were read longest ago, and returns how many there were.
func (db *DB) DeleteRemoteMedia(ctx context.Context, before, now time.Time, limit int) (n int, err error) {
	err = db.deleteMediaWhere(ctx, now, &n, limit, "uploader = '' AND used_ms < ?"+notHeld, "used_ms", before.UnixMilli())
	return n, err
}

// ShrinkRemoteMedia removes, of up to limit files of other servers that were read longest ago, as many as are needed to
// free the given number of bytes, and returns how many were removed.
func (db *DB) ShrinkRemoteMedia(ctx context.Context, bytes int64, now time.Time, limit int) (n int, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		var rows []mediaRow
		if err := tx.Where("uploader = ''" + notHeld).Order("used_ms").Limit(limit).Find(&rows).Error; err != nil {
			return err
		}
		for n = 0; n < len(rows) && bytes > 0; n++ {
			bytes -= rows[n].Size
		}
		return tx.deleteMedia(rows[:n], now)
	})
	return n, err
}

// RemoteMediaBytes is how much media of other servers is kept.
func (db *DB) RemoteMediaBytes(ctx context.Context) (int64, error) {
	var used int64
	err := db.Read(ctx).Raw("SELECT coalesce(sum(size), 0) FROM media WHERE uploader = ''").Scan(&used).Error
	return used, err
}

func (db *DB) deleteMediaWhere(ctx context.Context, now time.Time, n *int, limit int, where, order string, args ...any) error {
	return db.Write(ctx, func(tx *Tx) error {
		var rows []mediaRow
		if err := tx.Where(where, args...).Order(order).Limit(limit).Find(&rows).Error; err != nil {
			return err
		}
		*n = len(rows)
		return tx.deleteMedia(rows, now)
	})
}

func (tx *Tx) deleteMedia(rows []mediaRow, now time.Time) error {
	for _, row := range rows {
		err := tx.Exec("DELETE FROM media WHERE server = ? AND media_id = ?", row.Server, row.MediaID).Error
		switch {
		case err != nil:
		case row.Hash != "":
			err = tx.releaseBlob(row.Hash, now)
		case row.ExpiresMS == 0:
			err = tx.cancelLive(row.MediaID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type blobRow struct {
	Hash     string
	Size     int64
	Refs     int64
	Claim    int64
	DoomedMS int64 `gorm:"column:doomed_ms"`
}

func (blobRow) TableName() string { return "blobs" }

func (tx *Tx) referToBlob(hash BlobHash, size int64) error {
	var row blobRow
	switch err := tx.Where("hash = ?", hash.String()).Take(&row).Error; {
	case errors.Is(err, gorm.ErrRecordNotFound):
		return tx.Create(&blobRow{Hash: hash.String(), Size: size, Refs: 1}).Error
	case err != nil:
		return err
	case row.Refs == 0:
		return ErrBlobDoomed
	}
	return tx.Exec("UPDATE blobs SET refs = refs + 1 WHERE hash = ?", hash.String()).Error
}

// releaseBlob takes one reference away. With the last one goes all that was made from the blob and is known of it.
func (tx *Tx) releaseBlob(hash string, now time.Time) error {
	err := tx.Exec("UPDATE blobs SET refs = refs - 1, claim = 0, doomed_ms = ? WHERE hash = ?", now.UnixMilli(), hash).Error
	if err != nil {
		return err
	}
	var row blobRow
	if err := tx.Where("hash = ?", hash).Take(&row).Error; err != nil || row.Refs > 0 {
		return err
	}
	var derivatives []derivativeRow
	if err := tx.Where("source = ?", hash).Find(&derivatives).Error; err != nil {
		return err
	}
	for _, table := range []string{"derivatives WHERE source", "recordings WHERE hash"} {
		if err := tx.Exec("DELETE FROM "+table+" = ?", hash).Error; err != nil {
			return err
		}
	}
	for _, d := range derivatives {
		if err := tx.releaseBlob(d.Hash, now); err != nil {
			return err
		}
	}
	return nil
}

// DoomedBlobs are blobs to be deleted from the store, and the claim under which that is done.
type DoomedBlobs struct {
	Hashes []BlobHash
	claim  int64
}

// staleClaim is the age of a claim whose claimant must have died. Nobody may go on deleting so long.
const staleClaim = 15 * time.Minute

// ClaimDoomedBlobs takes it upon the caller to delete up to limit blobs that nothing refers to. They must be deleted from
// the store within ten minutes, and then given to ForgetBlobs. If the process dies in between, a later claim gets
// them again.
func (db *DB) ClaimDoomedBlobs(ctx context.Context, now time.Time, limit int) (DoomedBlobs, error) {
	claimed := DoomedBlobs{claim: rand.Int64N(1<<53) + 1}
	err := db.Write(ctx, func(tx *Tx) error {
		var hashes []string
		err := tx.Raw("SELECT hash FROM blobs WHERE refs = 0 AND (claim = 0 OR doomed_ms <= ?) ORDER BY doomed_ms LIMIT ?",
			now.Add(-staleClaim).UnixMilli(), limit).Scan(&hashes).Error
		if err != nil || len(hashes) == 0 {
			return err
		}
		for _, s := range hashes {
			hash, err := ParseBlobHash(s)
			if err != nil {
				return err
			}
			claimed.Hashes = append(claimed.Hashes, hash)
		}
		return tx.Exec("UPDATE blobs SET claim = ?, doomed_ms = ? WHERE hash IN ?", claimed.claim, now.UnixMilli(), hashes).Error
	})
	return claimed, err
}

// DoomOrphan claims a blob of the store that no row knows: what a crash left between its commit and AddMedia. It
// returns nothing to delete if there is a row after all.
func (db *DB) DoomOrphan(ctx context.Context, hash BlobHash, now time.Time) (DoomedBlobs, error) {
	claimed := DoomedBlobs{claim: rand.Int64N(1<<53) + 1}
	err := db.Write(ctx, func(tx *Tx) error {
		created := tx.Exec("INSERT INTO blobs (hash, size, refs, claim, doomed_ms) VALUES (?, 0, 0, ?, ?) ON CONFLICT DO NOTHING",
			hash.String(), claimed.claim, now.UnixMilli())
		if created.RowsAffected == 1 {
			claimed.Hashes = []BlobHash{hash}
		}
		return created.Error
	})
	return claimed, err
}

// KnowsBlob tells whether a row stands for the blob.
func (db *DB) KnowsBlob(ctx context.Context, hash BlobHash) (bool, error) {
	var n int
	err := db.Read(ctx).Raw("SELECT count(*) FROM blobs WHERE hash = ?", hash.String()).Scan(&n).Error
	return n > 0, err
}

// ForgetBlobs ends a claim after the blobs were deleted from the store.
func (db *DB) ForgetBlobs(ctx context.Context, claimed DoomedBlobs) error {
	if len(claimed.Hashes) == 0 {
		return nil
	}
	return db.Write(ctx, func(tx *Tx) error {
		return tx.Exec("DELETE FROM blobs WHERE refs = 0 AND claim = ?", claimed.claim).Error
	})
}

// Derivative is what was made from a blob: a thumbnail, or a recording in another container. It goes with the blob.
type Derivative struct {
	Source        BlobHash // what it was made from
	Kind          string   // "crop", "scale", or the container of a recording
	Width, Height int      // that were asked for; 0 for a recording
	Hash          BlobHash
	Size          int64 // bytes
	ContentType   string
}

type derivativeRow struct {
	Source      string
	Kind        string
	Width       int
	Height      int
	Hash        string
	Size        int64
	ContentType string
}

func (derivativeRow) TableName() string { return "derivatives" }

// Derivative finds what was made from a blob, or ErrNotFound.
func (db *DB) Derivative(ctx context.Context, source BlobHash, kind string, width, height int) (Derivative, error) {
	var row derivativeRow
	err := db.Read(ctx).Where("source = ? AND kind = ? AND width = ? AND height = ?", source.String(), kind, width, height).Take(&row).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		err = ErrNotFound
	}
	if err != nil {
		return Derivative{}, err
	}
	d := Derivative{Source: source, Kind: kind, Width: width, Height: height, Size: row.Size, ContentType: row.ContentType}
	d.Hash, err = ParseBlobHash(row.Hash)
	return d, err
}

// AddDerivative keeps a derivative whose blob has been committed; what AddMedia says about blobs holds here too. It does
// nothing and returns false if the source is gone or the same, there is such a derivative already, or the source has
// limit of them.
func (db *DB) AddDerivative(ctx context.Context, d Derivative, limit int) (added bool, err error) {
	if d.Hash == d.Source {
		return false, nil
	}
	err = db.Write(ctx, func(tx *Tx) error {
		var alive, others, same int
		source := d.Source.String()
		err := tx.Raw("SELECT (SELECT count(*) FROM blobs WHERE hash = ? AND refs > 0), (SELECT count(*) FROM derivatives WHERE source = ?), "+
			"(SELECT count(*) FROM derivatives WHERE source = ? AND kind = ? AND width = ? AND height = ?)",
			source, source, source, d.Kind, d.Width, d.Height).Row().Scan(&alive, &others, &same)
		if err != nil || alive == 0 || same > 0 || others >= limit {
			return err
		}
		if err := tx.referToBlob(d.Hash, d.Size); err != nil {
			return err
		}
		added = true
		return tx.Create(&derivativeRow{
			Source: source, Kind: d.Kind, Width: d.Width, Height: d.Height,
			Hash: d.Hash.String(), Size: d.Size, ContentType: d.ContentType,
		}).Error
	})
	return added, err
}

// URLPreview finds a preview made after the given time, or ErrNotFound.
func (db *DB) URLPreview(ctx context.Context, url string, after time.Time) ([]byte, error) {
	var body string
	err := db.Read(ctx).Raw("SELECT body FROM url_previews WHERE url = ? AND made_ms > ?", url, after.UnixMilli()).Row().Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return []byte(body), err
}

// KeepURLPreview keeps a preview and removes those made before the given time.
func (db *DB) KeepURLPreview(ctx context.Context, url string, body []byte, made, before time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.Exec("DELETE FROM url_previews WHERE made_ms < ?", before.UnixMilli()).Error; err != nil {
			return err
		}
		return tx.Exec("INSERT INTO url_previews (url, body, made_ms) VALUES (?, ?, ?) "+
			"ON CONFLICT (url) DO UPDATE SET body = excluded.body, made_ms = excluded.made_ms", url, string(body), made.UnixMilli()).Error
	})
}
