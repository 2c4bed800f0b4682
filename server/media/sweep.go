package media

import (
	"context"
	"time"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	sweepEvery = 5 * time.Minute
	// A blob without a row is an upload under way, unless it is older than any upload may last.
	orphanAge    = 24 * time.Hour
	orphansEvery = 24 * time.Hour
	sweepBatch   = 100
	claimLasts   = 5 * time.Minute
)

// Run deletes what has expired, what was pushed out of the cache and what a crash has left over, until ctx ends. It
// returns nil.
func (r *Repository) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var orphans time.Time
	for {
		if err := r.sweep(ctx); err != nil && ctx.Err() == nil {
			r.Log.Error("sweep of media", "err", err)
		}
		if r.Now().Sub(orphans) >= orphansEvery {
			orphans = r.Now()
			if err := r.sweepOrphans(ctx); err != nil && ctx.Err() == nil {
				r.Log.Error("sweep of blobs that nobody knows", "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Delete removes a file, and its bytes if nothing else stands for them. It is M_NOT_FOUND if there is none,
// M_FORBIDDEN if a legal hold keeps it.
func (r *Repository) Delete(ctx context.Context, uri URI) error {
	err := r.DB.DeleteMedia(ctx, uri.Server, uri.MediaID, r.Now())
	switch err {
	case nil:
	case storage.ErrNotFound:
		return matrix.NotFound("there is no such file")
	case storage.ErrHeld:
		return matrix.Forbidden("the file is under a legal hold")
	}
	if err != nil {
		return err
	}
	return r.DeleteDoomed(ctx)
}

// DeleteUploads removes all that user has uploaded, but for what a legal hold keeps, and returns how many files that were.
func (r *Repository) DeleteUploads(ctx context.Context, user matrix.UserID) (int, error) {
	all := 0
	for {
		n, err := r.DB.DeleteUploads(ctx, user, sweepBatch, r.Now())
		all += n
		if err != nil {
			return all, err
		}
		if n < sweepBatch {
			return all, r.DeleteDoomed(ctx)
		}
	}
}

func (r *Repository) sweep(ctx context.Context) error {
	now := r.Now()
	if err := r.writeUses(ctx); err != nil {
		return err
	}
	if err := r.lookAfterLives(ctx); err != nil {
		return err
	}
	if err := r.inBatches(func() (int, error) { return r.DB.DeleteExpiredMedia(ctx, now, sweepBatch) }); err != nil {
		return err
	}
	if r.Config.RemoteCacheAge > 0 {
		old := now.Add(-r.Config.RemoteCacheAge)
		if err := r.inBatches(func() (int, error) { return r.DB.DeleteRemoteMedia(ctx, old, now, sweepBatch) }); err != nil {
			return err
		}
	}
	if err := r.shrinkCache(ctx, now); err != nil {
		return err
	}
	return r.DeleteDoomed(ctx)
}

func (r *Repository) inBatches(delete func() (int, error)) error {
	for {
		if n, err := delete(); err != nil || n < sweepBatch {
			return err
		}
	}
}

// shrinkCache removes the media of other servers that were read longest ago, until the rest fits.
func (r *Repository) shrinkCache(ctx context.Context, now time.Time) error {
	for r.Config.RemoteCacheBytes > 0 {
		used, err := r.DB.RemoteMediaBytes(ctx)
		if err != nil || used <= r.Config.RemoteCacheBytes {
			return err
		}
		if n, err := r.DB.ShrinkRemoteMedia(ctx, used-r.Config.RemoteCacheBytes, now, sweepBatch); err != nil || n == 0 {
			return err
		}
	}
	return nil
}

// writeUses writes down which media of other servers have been read.
func (r *Repository) writeUses(ctx context.Context) error {
	r.mu.Lock()
	used := r.used
	r.used = map[URI]time.Time{}
	r.mu.Unlock()
	for uri, at := range used {
		if err := r.DB.TouchMedia(ctx, uri.Server, uri.MediaID, at); err != nil {
			return err
		}
	}
	return nil
}

// DeleteDoomed deletes blobs that nothing refers to any more, which is done every few minutes anyway.
func (r *Repository) DeleteDoomed(ctx context.Context) error {
	for {
		claimed, err := r.DB.ClaimDoomedBlobs(ctx, r.Now(), sweepBatch)
		if err != nil || len(claimed.Hashes) == 0 {
			return err
		}
		if err := r.deleteClaimed(ctx, claimed); err != nil {
			return err
		}
	}
}

func (r *Repository) deleteClaimed(ctx context.Context, claimed storage.DoomedBlobs) error {
	ctx, cancel := context.WithTimeout(ctx, claimLasts)
	defer cancel()
	for _, hash := range claimed.Hashes {
		if err := r.Blobs.Delete(ctx, hash); err != nil {
			return err
		}
	}
	return r.DB.ForgetBlobs(ctx, claimed)
}

// sweepOrphans deletes blobs that a crash has left between their commit and their row.
func (r *Repository) sweepOrphans(ctx context.Context) error {
	young := r.Now().Add(-orphanAge)
	return r.Blobs.Each(ctx, func(b storage.BlobMeta) error {
		if b.Written.After(young) {
			return nil
		}
		if known, err := r.DB.KnowsBlob(ctx, b.Hash); known || err != nil {
			return err
		}
		claimed, err := r.DB.DoomOrphan(ctx, b.Hash, r.Now())
		if err != nil {
			return err
		}
		return r.deleteClaimed(ctx, claimed)
	})
}
