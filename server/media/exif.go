package media

import (
	"encoding/binary"
	"image"
	"io"
)

// exifOrientation is how a JPEG is to be turned, 1 (as it is) to 8, from its Exif block; 1 if it does not say.
// Thumbnails carry no Exif, so that a camera held upright would make them lie on their side.
func exifOrientation(r io.Reader) int {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil || head[0] != 0xff || head[1] != 0xd8 {
		return 1
	}
	for range 32 { // segments before the picture itself
		if _, err := io.ReadFull(r, head[:]); err != nil || head[0] != 0xff || head[1] == 0xda {
			return 1
		}
		size := int(binary.BigEndian.Uint16(head[2:])) - 2
		if size < 0 {
			return 1
		}
		segment := make([]byte, size)
		if _, err := io.ReadFull(r, segment); err != nil {
			return 1
		}
		if head[1] == 0xe1 && size > 14 && string(segment[:6]) == "Exif\x00\x00" {
			return tiffOrientation(segment[6:])
		}
	}
	return 1
}

// tiffOrientation looks for tag 0x0112 in the first directory.
func tiffOrientation(b []byte) int {
	var order binary.ByteOrder = binary.LittleEndian
	if string(b[:2]) == "MM" {
		order = binary.BigEndian
	}
	at := uint64(order.Uint32(b[4:]))
	if at+2 > uint64(len(b)) {
		return 1
	}
	entries := b[at+2:]
	for range order.Uint16(b[at:]) {
		if len(entries) < 12 {
			return 1
		}
		if order.Uint16(entries) == 0x0112 {
			if turn := int(order.Uint16(entries[8:])); 1 <= turn && turn <= 8 {
				return turn
			}
			return 1
		}
		entries = entries[12:]
	}
	return 1
}

// source says where a pixel of the upright image, which is wide and high, lies in the image as it is stored.
func source(x, y, wide, high, turn int) (int, int) {
	switch turn {
	case 2:
		return wide - 1 - x, y
	case 3:
		return wide - 1 - x, high - 1 - y
	case 4:
		return x, high - 1 - y
	case 5:
		return y, x
	case 6:
		return y, wide - 1 - x
	case 7:
		return high - 1 - y, wide - 1 - x
	case 8:
		return high - 1 - y, x
	}
	return x, y
}

// unturn is where a part of the upright image lies in the image as it is stored.
func unturn(part image.Rectangle, wide, high, turn int) image.Rectangle {
	x0, y0 := source(part.Min.X, part.Min.Y, wide, high, turn)
	x1, y1 := source(part.Max.X-1, part.Max.Y-1, wide, high, turn)
	return image.Rect(min(x0, x1), min(y0, y1), max(x0, x1)+1, max(y0, y1)+1)
}

// turned makes the image upright.
func turned(img *image.RGBA, turn int) *image.RGBA {
	if turn <= 1 {
		return img
	}
	wide, high := img.Bounds().Dx(), img.Bounds().Dy()
	if turn >= 5 {
		wide, high = high, wide
	}
	out := image.NewRGBA(image.Rect(0, 0, wide, high))
	for y := range high {
		for x := range wide {
			sx, sy := source(x, y, wide, high, turn)
			copy(out.Pix[out.PixOffset(x, y):][:4], img.Pix[img.PixOffset(sx, sy):][:4])
		}
	}
	return out
}
