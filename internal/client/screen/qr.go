package screen

import (
	"image"
	"image/color"
	"strings"

	"github.com/boombuler/barcode/qr"

	"teleport/internal/fault"
)

// quiet is the width of the empty margin, in modules; readers need it.
const quiet = 2

// QR draws text as a QR code of half blocks, two modules a character, black on
// white whatever the colours of the terminal are.
func QR(text string) (string, error) {
	code, err := qr.Encode(text, qr.L, qr.Unicode)
	if err != nil {
		return "", fault.Invalid("draw a QR code: %w", err)
	}
	const begin, end = "\x1b[38;5;16m\x1b[48;5;231m", "\x1b[0m"
	bounds := code.Bounds()
	dark := func(x, y int) bool {
		p := image.Pt(x, y)
		if !p.In(bounds) {
			return false
		}
		return color.GrayModel.Convert(code.At(x, y)).(color.Gray).Y < 128
	}
	var out strings.Builder
	for y := bounds.Min.Y - quiet; y < bounds.Max.Y+quiet; y += 2 {
		out.WriteString(begin)
		for x := bounds.Min.X - quiet; x < bounds.Max.X+quiet; x++ {
			switch top, bottom := dark(x, y), dark(x, y+1); {
			case top && bottom:
				out.WriteRune('█')
			case top:
				out.WriteRune('▀')
			case bottom:
				out.WriteRune('▄')
			default:
				out.WriteByte(' ')
			}
		}
		out.WriteString(end + "\n")
	}
	return out.String(), nil
}
