package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"strconv"

	"golang.org/x/image/draw"

	_ "golang.org/x/image/webp"
	_ "image/gif" // read

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

const (
	maxThumbnailSide = 1600
	// maxDerivatives of one file are kept; further ones are made anew each time.
	maxDerivatives    = 16
	thumbnailQuality  = 85
	maxThumbnailBytes = 10 << 20 // of one that another server makes
)

// ThumbnailSize is the least size that a client wants to have.
type ThumbnailSize struct {
	Width, Height int // pixels, at least 1
	// Crop asks for exactly the ratio of width and height; otherwise the image keeps its own ("scale").
	Crop bool
	// Animated asks for a moving thumbnail. None are made: an answer is always still.
	Animated bool
}

// ParseThumbnailSize reads the query of a thumbnail request. The error is M_INVALID_PARAM or M_MISSING_PARAM, 400.
func ParseThumbnailSize(query map[string][]string) (ThumbnailSize, error) {
	var size ThumbnailSize
	for _, side := range []struct {
		name string
		into *int
	}{{"width", &size.Width}, {"height", &size.Height}} {
		values := query[side.name]
		if len(values) == 0 {
			return size, matrix.MissingParam("%s is missing", side.name)
		}
		n, err := strconv.Atoi(values[0])
		if err != nil || n < 1 || n > 1<<20 {
			return size, matrix.InvalidParam("%s must be a positive number of pixels", side.name)
		}
		*side.into = n
	}
	if method := query["method"]; len(method) > 0 {
		if method[0] != "crop" && method[0] != "scale" {
			return size, matrix.InvalidParam("method must be crop or scale")
		}
		size.Crop = method[0] == "crop"
	}
	if animated := query["animated"]; len(animated) > 0 {
		size.Animated = animated[0] == "true"
	}
	return size, nil
}

func (s ThumbnailSize) kind() string {
	if s.Crop {
		return "crop"
	}
	return "scale"
}

// usual rounds a size up to one of those that the spec recommends, if one is close, so that clients share thumbnails;
// a size that is not among them stays, within limits. Spec v1.19 client-server-api/#thumbnails
func (s ThumbnailSize) usual() ThumbnailSize {
	s.Animated = false
	if s.Crop {
		if s.Width == s.Height && s.Width <= 96 {
			s.Width = 96
			if s.Height <= 32 {
				s.Width = 32
			}
			s.Height = s.Width
		}
	} else {
		for _, u := range [][2]int{{320, 240}, {640, 480}, {800, 600}} {
			if s.Width <= u[0] && s.Height <= u[1] {
				s.Width, s.Height = u[0], u[1]
				break
			}
		}
	}
	if long := max(s.Width, s.Height); long > maxThumbnailSide {
		s.Width = max(s.Width*maxThumbnailSide/long, 1)
		s.Height = max(s.Height*maxThumbnailSide/long, 1)
	}
	return s
}

// errNoImage is what cannot be made a thumbnail of.
var errNoImage = matrix.BadRequest("this is no image of which a thumbnail can be made")

// Thumbnail opens a thumbnail, making it if need be. Errors are those of Open, M_UNKNOWN (400) for what is no image
// that can be read, M_TOO_LARGE (413, of another server's media 502) for an image of too many pixels.
// Spec v1.19 client-server-api/#get_matrixclientv1mediathumbnailservernamemediaid
func (r *Repository) Thumbnail(ctx context.Context, req Request, size ThumbnailSize) (*File, error) {
	size = size.usual()
	source, err := r.complete(ctx, req)
	if err != nil {
		return nil, err
	}
	kept, err := r.DB.Derivative(ctx, source.Hash, size.kind(), size.Width, size.Height)
	if err == nil {
		return r.openThumbnail(ctx, source, kept)
	}
	if !errors.Is(err, storage.ErrNotFound) {
		return nil, fmt.Errorf("find thumbnail: %w", err)
	}
	key := fmt.Sprintf("thumbnail %s %s %dx%d", source.Hash, size.kind(), size.Width, size.Height)
	// Made under the server's life, so that the first of several who ask may go.
	made := r.making.DoChan(key, func() (any, error) {
		if err := r.begin(); err != nil {
			return nil, err
		}
		defer r.running.Done()
		return r.makeThumbnail(r.life, req, source, size)
	})
	select {
	case result := <-made:
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.(picture).file(ctx, r, source)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *Repository) openThumbnail(ctx context.Context, source storage.Media, t storage.Derivative) (*File, error) {
	return r.openBlob(ctx, storage.Media{Hash: t.Hash, Size: t.Size, ContentType: t.ContentType, Filename: thumbnailName(t.ContentType), Created: source.Created})
}

func thumbnailName(contentType string) string {
	if contentType == "image/png" {
		return "thumbnail.png"
	}
	return "thumbnail" + map[string]string{"image/jpeg": ".jpg", "image/gif": ".gif", "image/webp": ".webp", "image/apng": ".png"}[contentType]
}

// picture is a thumbnail, or a rendition, just made: its bytes, or none if the original is small enough to be its own thumbnail.
type picture struct {
	bytes       []byte
	hash        storage.BlobHash // zero if it was not kept
	contentType string
}

func (p picture) file(ctx context.Context, r *Repository, source storage.Media) (*File, error) {
	if p.bytes == nil {
		return r.openBlob(ctx, storage.Media{Hash: source.Hash, Size: source.Size, ContentType: p.contentType, Filename: thumbnailName(p.contentType), Created: source.Created})
	}
	return &File{
		ReadSeekCloser: noClose{bytes.NewReader(p.bytes)}, ContentType: p.contentType, Filename: thumbnailName(p.contentType),
		Hash: p.hash, Size: int64(len(p.bytes)), Created: source.Created,
	}, nil
}

type noClose struct{ io.ReadSeeker }

func (noClose) Close() error { return nil }

// makeThumbnail makes and keeps a thumbnail.
func (r *Repository) makeThumbnail(ctx context.Context, req Request, source storage.Media, size ThumbnailSize) (picture, error) {
	p, err := r.shrink(ctx, req, source, size)
	if errors.Is(err, errNoImage) && req.URI.Server != r.Server && r.Remote != nil {
		p, err = r.remoteThumbnail(ctx, req, size)
	}
	if err != nil || p.bytes == nil {
		return p, err
	}
	p.hash, err = r.keepDerivative(ctx, p.bytes, storage.Derivative{
		Source: source.Hash, Kind: size.kind(), Width: size.Width, Height: size.Height, ContentType: p.contentType,
	})
	return p, err
}

// keepDerivative stores what was made from a file, unless there is too much of it already.
func (r *Repository) keepDerivative(ctx context.Context, content []byte, d storage.Derivative) (storage.BlobHash, error) {
	staged, err := r.Blobs.Stage()
	if err != nil {
		return d.Hash, err
	}
	defer func() { staged.Discard() }()
	if _, err := staged.Write(content); err != nil {
		return d.Hash, err
	}
	var added bool
	staged, err = r.keep(ctx, staged, func(hash storage.BlobHash, size int64) (err error) {
		d.Hash, d.Size = hash, size
		added, err = r.DB.AddDerivative(ctx, d, maxDerivatives)
		return err
	})
	if err != nil || added {
		return d.Hash, err
	}
	claimed, err := r.DB.DoomOrphan(ctx, d.Hash, r.Now()) // its blob may be nobody's
	if err != nil {
		return d.Hash, err
	}
	return d.Hash, r.deleteClaimed(ctx, claimed)
}

// remoteThumbnail asks the server that has the file for what we cannot make: of videos and drawings.
func (r *Repository) remoteThumbnail(ctx context.Context, req Request, size ThumbnailSize) (picture, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Config.RemoteTimeout)
	defer cancel()
	file, err := r.Remote.ThumbnailMedia(ctx, req.URI.Server, req.URI.MediaID, size, 0)
	if err != nil {
		return picture{}, errNoImage
	}
	defer file.Body.Close()
	contentType := cleanContentType(file.ContentType)
	switch contentType {
	case "image/jpeg", "image/png", "image/gif", "image/webp", "image/apng":
	default:
		return picture{}, errNoImage
	}
	b, err := io.ReadAll(io.LimitReader(file.Body, maxThumbnailBytes+1))
	if err != nil {
		return picture{}, remoteError(req.URI.Server, err)
	}
	if len(b) == 0 || len(b) > maxThumbnailBytes {
		return picture{}, errNoImage
	}
	return picture{bytes: b, contentType: contentType}, nil
}

// shrink reads the image and makes it smaller. It is errNoImage for what cannot be read.
func (r *Repository) shrink(ctx context.Context, req Request, source storage.Media, size ThumbnailSize) (picture, error) {
	select {
	case r.imageSlots <- struct{}{}:
		defer func() { <-r.imageSlots }()
	case <-ctx.Done():
		return picture{}, ctx.Err()
	}
	content, err := r.Blobs.Open(ctx, source.Hash)
	if err != nil {
		return picture{}, fmt.Errorf("open image: %w", err)
	}
	defer content.Close()
	img, format, err := r.decode(content)
	if matrix.ErrorCode(err) == "M_TOO_LARGE" && req.URI.Server != r.Server {
		err = matrix.TooLarge("the image has too many pixels").WithStatus(502)
	}
	if err != nil {
		return picture{}, err
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return picture{}, err
	}
	turn := 1
	if format == "jpeg" {
		turn = exifOrientation(content)
	}
	b := img.Bounds()
	wide, high := b.Dx(), b.Dy()
	if turn >= 5 {
		wide, high = high, wide
	}
	plan := planThumbnail(wide, high, size)
	// Never larger than the original: then that is the thumbnail, if it stands still.
	if plan.whole && (format == "jpeg" || format == "png") {
		return picture{contentType: "image/" + format}, nil
	}
	return encodeThumbnail(drawThumbnail(img, turn, plan), format)
}

// decode reads an image after a look at its size.
func (r *Repository) decode(content io.ReadSeeker) (img image.Image, format string, err error) {
	defer func() { // the decoders are fuzzed, but they are not ours
		if v := recover(); v != nil {
			img, err = nil, errNoImage
		}
	}()
	config, format, err := image.DecodeConfig(content)
	if err != nil || config.Width <= 0 || config.Height <= 0 {
		return nil, "", errNoImage
	}
	if int64(config.Width)*int64(config.Height) > r.Config.MaxImagePixels {
		return nil, "", matrix.TooLarge("the image has more than %d pixels", r.Config.MaxImagePixels)
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return nil, "", err
	}
	img, format, err = image.Decode(content)
	if err != nil || img.Bounds().Empty() {
		return nil, "", errNoImage
	}
	return img, format, nil
}

// plan says which part of the image (turned upright) becomes a picture of which size.
type plan struct {
	part          image.Rectangle
	width, height int
	whole         bool // the part is everything and nothing is made smaller
}

// planThumbnail follows the spec: with scale the image keeps its ratio and covers the wanted size as closely as it
// can; crop cuts the middle part of the wanted ratio out. Nothing is ever made larger.
func planThumbnail(wide, high int, want ThumbnailSize) plan {
	part := image.Rect(0, 0, wide, high)
	if want.Crop {
		w, h := wide, wide*want.Height/want.Width
		if h > high {
			w, h = high*want.Width/want.Height, high
		}
		w, h = max(w, 1), max(h, 1)
		part = image.Rect(0, 0, w, h).Add(image.Pt((wide-w)/2, (high-h)/2))
	}
	p := plan{part: part, width: part.Dx(), height: part.Dy()}
	if p.width > want.Width && p.height > want.Height {
		// Cover the wanted size: the side that is shorter in proportion becomes exactly what is wanted.
		if p.width*want.Height < p.height*want.Width {
			p.width, p.height = want.Width, p.height*want.Width/p.width
		} else {
			p.width, p.height = p.width*want.Height/p.height, want.Height
		}
	}
	p.whole = part.Dx() == wide && part.Dy() == high && p.width == wide && p.height == high
	return p
}

// drawThumbnail shrinks in two steps: coarsely to no less than twice the size, then well.
func drawThumbnail(img image.Image, turn int, p plan) *image.RGBA {
	b := img.Bounds()
	wide, high := b.Dx(), b.Dy()
	if turn >= 5 {
		wide, high = high, wide
	}
	// The parts and sizes are those of the image as it is shown; the pixels are still turned.
	part := unturn(p.part, wide, high, turn).Add(b.Min)
	w, h := p.width, p.height
	if turn >= 5 {
		w, h = h, w
	}
	for part.Dx() >= 4*w && part.Dy() >= 4*h {
		half := image.NewRGBA(image.Rect(0, 0, max(part.Dx()/2, 2*w), max(part.Dy()/2, 2*h)))
		if part.Dx() > 8*w && part.Dy() > 8*h {
			half = image.NewRGBA(image.Rect(0, 0, part.Dx()/4, part.Dy()/4))
		}
		draw.ApproxBiLinear.Scale(half, half.Bounds(), img, part, draw.Src, nil)
		img, part = half, half.Bounds()
	}
	small := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.CatmullRom.Scale(small, small.Bounds(), img, part, draw.Src, nil)
	return turned(small, turn)
}

// encodeThumbnail makes a PNG of a PNG, which is most often a drawing or a screenshot, and of what one can see through;
// else a JPEG.
func encodeThumbnail(img *image.RGBA, format string) (picture, error) {
	var out bytes.Buffer
	if format == "png" || !img.Opaque() {
		err := png.Encode(&out, img)
		return picture{bytes: out.Bytes(), contentType: "image/png"}, err
	}
	err := jpeg.Encode(&out, img, &jpeg.Options{Quality: thumbnailQuality})
	return picture{bytes: out.Bytes(), contentType: "image/jpeg"}, err
}
