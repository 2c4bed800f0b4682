package media

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"parley.im/parley/server/matrix"
)

// Preview is the OpenGraph description of the page at a URL, as JSON. at is the time for which it is wanted; zero is now.
// Spec v1.19 client-server-api/#get_matrixclientv1mediapreview_url
func (r *Repository) Preview(ctx context.Context, user matrix.UserID, url string, at time.Time) (json.RawMessage, error) {
	return nil, errors.New("not implemented")
}
