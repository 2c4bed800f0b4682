package media

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"net/url"
	"strings"
	"testing"
)

// flag is an image whose left half is red and whose right half is blue.
func flag(w, h int, alpha uint8) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			c := color.NRGBA{255, 0, 0, alpha}
			if x >= w/2 {
				c = color.NRGBA{0, 0, 255, alpha}
			}
			img.SetNRGBA(x, y, c)
		}
	}
	return img
}

func encoded(t testing.TB, format string, img image.Image) string {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch format {
	case "png":
		err = png.Encode(&b, img)
	case "jpeg":
		err = jpeg.Encode(&b, img, nil)
	case "gif":
		err = gif.Encode(&b, img, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (w *world) picture(t *testing.T, content, contentType string) URI {
	return w.upload(t, Upload{Body: strings.NewReader(content), Size: -1, ContentType: contentType})
}

func (w *world) thumbnail(t *testing.T, uri URI, size ThumbnailSize) (image.Image, *File) {
	t.Helper()
	f, err := w.Thumbnail(t.Context(), Request{URI: uri}, size)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !strings.HasPrefix(f.ContentDisposition(), "inline; filename=thumbnail.") {
		t.Errorf("disposition %s", f.ContentDisposition())
	}
	img, format, err := image.Decode(f)
	if err != nil || "image/"+format != f.ContentType {
		t.Fatalf("%s as %s, %v", format, f.ContentType, err)
	}
	return img, f
}

func TestThumbnailCoversTheWantedSize(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		w, h         int
		want         ThumbnailSize
		gotW, gotH   int
		format, kind string
		alpha        uint8
	}{
		{1000, 500, ThumbnailSize{Width: 320, Height: 240}, 480, 240, "png", "image/png", 255},
		{1000, 500, ThumbnailSize{Width: 320, Height: 240}, 480, 240, "png", "image/png", 100},
		{500, 1000, ThumbnailSize{Width: 300, Height: 200}, 320, 640, "jpeg", "image/jpeg", 255},
		{1000, 500, ThumbnailSize{Width: 32, Height: 32, Crop: true}, 32, 32, "jpeg", "image/jpeg", 255},
		{1000, 500, ThumbnailSize{Width: 20, Height: 20, Crop: true}, 32, 32, "jpeg", "image/jpeg", 255},
		{1000, 500, ThumbnailSize{Width: 100, Height: 200, Crop: true}, 100, 200, "gif", "image/jpeg", 255},
		{100, 50, ThumbnailSize{Width: 320, Height: 240}, 100, 50, "png", "image/png", 255},
		{100, 50, ThumbnailSize{Width: 320, Height: 240}, 100, 50, "gif", "image/jpeg", 255},
		{100, 50, ThumbnailSize{Width: 96, Height: 96, Crop: true}, 50, 50, "png", "image/png", 255},
		{1, 3000, ThumbnailSize{Width: 96, Height: 96, Crop: true}, 1, 1, "png", "image/png", 255},
	} {
		uri := w.picture(t, encoded(t, c.format, flag(c.w, c.h, c.alpha)), "image/"+c.format)
		for range 2 { // made, then kept
			img, f := w.thumbnail(t, uri, c.want)
			if b := img.Bounds(); b.Dx() != c.gotW || b.Dy() != c.gotH || f.ContentType != c.kind {
				t.Errorf("%dx%d %+v: %v %s, want %dx%d %s", c.w, c.h, c.want, b, f.ContentType, c.gotW, c.gotH, c.kind)
			}
		}
	}
}

// withOrientation puts an Exif block into a JPEG.
func withOrientation(jpg string, turn byte) string {
	tiff := "II*\x00\x08\x00\x00\x00" + "\x01\x00" + "\x12\x01\x03\x00\x01\x00\x00\x00" + string([]byte{turn, 0, 0, 0}) + "\x00\x00\x00\x00"
	block := "Exif\x00\x00" + tiff
	size := binary.BigEndian.AppendUint16(nil, uint16(len(block)+2))
	return jpg[:2] + "\xff\xe1" + string(size) + block + jpg[2:]
}

func isRed(c color.Color) bool { r, _, b, _ := c.RGBA(); return r > b }

func TestThumbnailStandsUpright(t *testing.T) {
	w := newWorld(t, nil)
	stored := encoded(t, "jpeg", flag(800, 400, 255)) // red left, blue right
	// Where red is shown, by orientation; l, r, t, b.
	for turn, want := range map[byte]string{1: "l", 2: "r", 3: "r", 4: "l", 5: "t", 6: "t", 7: "b", 8: "b"} {
		uri := w.picture(t, withOrientation(stored, turn), "image/jpeg")
		img, _ := w.thumbnail(t, uri, ThumbnailSize{Width: 32, Height: 32, Crop: false})
		b := img.Bounds()
		got := map[[2]bool]string{{true, true}: "l", {false, false}: "r", {true, false}: "t", {false, true}: "b"}
		// Red at the top left, and at the bottom left, tell the four apart.
		if tall := turn >= 5; tall != (b.Dy() > b.Dx()) {
			t.Errorf("orientation %d: %v", turn, b)
		}
		corner, below := isRed(img.At(2, 2)), isRed(img.At(2, b.Dy()-3))
		if got[[2]bool{corner, below}] != want {
			t.Errorf("orientation %d: red is at %s, want %s", turn, got[[2]bool{corner, below}], want)
		}
	}
}

func TestThumbnailOfWhatIsNoImage(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxImagePixels = 10_000 })
	size := ThumbnailSize{Width: 32, Height: 32}
	ctx := t.Context()
	good := encoded(t, "png", flag(64, 64, 255))
	for name, content := range map[string]string{"text": "hello", "nothing": "", "cut off": good[:len(good)/2], "svg": "<svg/>"} {
		_, err := w.Thumbnail(ctx, Request{URI: w.picture(t, content, "image/png")}, size)
		if err == nil {
			t.Errorf("%s became a picture", name)
			continue
		}
		wantCode(t, err, 400, "M_UNKNOWN")
	}
	_, err := w.Thumbnail(ctx, Request{URI: w.picture(t, encoded(t, "png", flag(200, 200, 255)), "image/png")}, size)
	wantCode(t, err, 413, "M_TOO_LARGE")
	w.remote.download = func(string) (*RemoteFile, error) {
		return remoteFile(strings.NewReader(encoded(t, "png", flag(200, 200, 255)))), nil
	}
	_, err = w.Thumbnail(ctx, Request{URI: far}, size)
	wantCode(t, err, 502, "M_TOO_LARGE")
}

func TestThumbnailOfRemoteVideoIsAskedFor(t *testing.T) {
	w := newWorld(t, nil)
	w.remote.download = func(string) (*RemoteFile, error) { return remoteFile(strings.NewReader("a film")), nil }
	asked := 0
	w.remote.thumb = func() (*RemoteFile, error) {
		asked++
		f := remoteFile(strings.NewReader(encoded(t, "png", flag(32, 32, 255))))
		f.ContentType = "image/png"
		return f, nil
	}
	for range 2 {
		w.thumbnail(t, far, ThumbnailSize{Width: 32, Height: 32})
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func TestThumbnailsGoWithTheirImage(t *testing.T) {
	w := newWorld(t, nil)
	uri := w.picture(t, encoded(t, "png", flag(600, 600, 255)), "image/png")
	_, f := w.thumbnail(t, uri, ThumbnailSize{Width: 96, Height: 96, Crop: true})
	if _, err := w.Blobs.Size(t.Context(), f.Hash); err != nil {
		t.Fatal("the thumbnail was not kept:", err)
	}
	if err := w.Delete(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Blobs.Size(t.Context(), f.Hash); err == nil {
		t.Fatal("the thumbnail is still there")
	}
}

func TestThumbnailSizeIsStrictlyParsed(t *testing.T) {
	for query, want := range map[string]string{
		"width=32&height=32&method=crop": "", "width=32&height=32": "", "width=32": "M_MISSING_PARAM", "height=32": "M_MISSING_PARAM",
		"width=0&height=32": "M_INVALID_PARAM", "width=-1&height=32": "M_INVALID_PARAM", "width=x&height=32": "M_INVALID_PARAM",
		"width=32&height=99999999999999999999": "M_INVALID_PARAM", "width=32&height=32&method=stretch": "M_INVALID_PARAM",
	} {
		values, _ := url.ParseQuery(query)
		_, err := ParseThumbnailSize(values)
		if want == "" && err != nil {
			t.Errorf("%s: %v", query, err)
		} else if want != "" {
			wantCode(t, err, 400, want)
		}
	}
}

func FuzzExifOrientation(f *testing.F) {
	f.Add([]byte(withOrientation("\xff\xd8\xff\xda", 6)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if turn := exifOrientation(bytes.NewReader(b)); turn < 1 || turn > 8 {
			t.Fatal(turn)
		}
	})
}
