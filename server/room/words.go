package room

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"parley.im/parley/storage"
)

// Text is compared word by word, without regard to case, to accents on Latin letters, and to the many widths and ligatures of
// Unicode (NFKC). In scripts that put no spaces between words, each run of characters is taken apart into pairs: a text is found by any
// part of a run, down to one character.

// wordsVersion is to be raised when words are made differently: the index is then built anew.
const wordsVersion = 1

const (
	maxWordBytes = 64    // of one word; what is longer is cut
	maxDocWords  = 4_000 // of one event; those after it are not found
)

// run is a word, or a run of characters without spaces.
type run struct {
	text     string
	unspaced bool
}

// runsOf takes a text apart.
func runsOf(text string) []run {
	var runs []run
	var b strings.Builder
	unspaced := false
	end := func() {
		if b.Len() > 0 {
			runs = append(runs, run{b.String(), unspaced})
			b.Reset()
		}
	}
	for _, r := range norm.NFKC.String(text) {
		switch kind := kindOf(r); kind {
		case between:
			end()
		case inMark: // belongs to what stands before it
			if b.Len() > 0 {
				b.WriteRune(r)
			}
		default:
			if (kind == inRun) != unspaced {
				end()
				unspaced = kind == inRun
			}
			if r != tatweel {
				b.WriteRune(fold(r))
			}
		}
	}
	end()
	return runs
}

// tatweel only stretches an Arabic word.
const tatweel = '\u0640'

const (
	between = iota
	inWord
	inMark
	inRun
)

func kindOf(r rune) int {
	switch {
	case r < utf8.RuneSelf:
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return inWord
		}
		return between
	case r == '\u30fc': // the long vowel of Japanese
		return inRun
	case unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul, unicode.Bopomofo, unicode.Thai, unicode.Lao,
		unicode.Khmer, unicode.Myanmar, unicode.So): // So: emoji
		return inRun
	case unicode.IsLetter(r) || unicode.IsNumber(r):
		return inWord
	case unicode.IsMark(r) && !(r >= '\ufe00' && r <= '\ufe0f'): // not those that choose between a character's looks
		return inMark
	}
	return between
}

// fold makes letters comparable.
func fold(r rune) rune {
	if r < utf8.RuneSelf {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}
	r = unicode.ToLower(r)
	if r < 0x250 || r >= 0x1e00 && r < 0x1f00 { // Latin letters with an accent
		var b [utf8.UTFMax]byte
		if d := norm.NFD.Properties(b[:utf8.EncodeRune(b[:], r)]).Decomposition(); len(d) > 0 {
			base, _ := utf8.DecodeRune(d)
			return base
		}
	}
	return r
}

func cut(word string) string {
	if len(word) <= maxWordBytes {
		return word
	}
	n := maxWordBytes
	for !utf8.RuneStart(word[n]) {
		n--
	}
	return word[:n]
}

// pairs calls fn with each two characters of a run, and with the last alone.
func pairs(text string, fn func(string)) {
	for i := range text {
		_, first := utf8.DecodeRuneInString(text[i:])
		_, second := utf8.DecodeRuneInString(text[i+first:])
		fn(text[i : i+first+second])
	}
}

// indexWords are the words of a text for the index, each once.
func indexWords(text string) []string {
	var words []string
	seen := map[string]bool{}
	add := func(w string) {
		if !seen[w] && len(words) < maxDocWords {
			seen[w] = true
			words = append(words, w)
		}
	}
	for _, r := range runsOf(text) {
		if r.unspaced {
			pairs(r.text, add)
		} else {
			add(cut(r.text))
		}
	}
	return words
}

// sought is what somebody looks for: all of its runs must be in a text, words at the beginning of a word.
type sought []run

// maxSought is how many words are looked for; further ones are not looked at.
const maxSought = 16

func newSought(term string) sought {
	runs := runsOf(term)
	return runs[:min(len(runs), maxSought)]
}

// indexed is how the index is asked. It finds all texts that match, and some that do not.
func (q sought) indexed() []storage.SearchWord {
	var words []storage.SearchWord
	for _, r := range q {
		switch {
		case !r.unspaced:
			words = append(words, storage.SearchWord{Text: cut(r.text), Prefix: r.isPrefix() || len(r.text) > maxWordBytes})
		case utf8.RuneCountInString(r.text) == 1:
			words = append(words, storage.SearchWord{Text: r.text, Prefix: true})
		default:
			last := len(words)
			pairs(r.text, func(pair string) { words = append(words, storage.SearchWord{Text: pair}) })
			words = words[:len(words)-1] // the last character alone is in the pair before it
			words = words[:min(len(words), last+maxSought)]
		}
	}
	return words
}

// isPrefix reports whether a word is looked for at the beginning of longer ones: "meet" finds "meeting", but "a" does not find "and".
func (r *run) isPrefix() bool { return utf8.RuneCountInString(r.text) > 1 }

// rank is 0 if a text does not have all that is looked for, and greater the more of the text that makes up, whole words more.
func (q sought) rank(text string) float64 {
	runs := runsOf(text)
	covered, size := 0.0, 20.0
	for _, r := range runs {
		size += float64(len(r.text))
	}
	for i := range q {
		best := 0.0
		for _, r := range runs {
			best = max(best, q[i].in(r))
		}
		if best == 0 {
			return 0
		}
		covered += best
	}
	return covered / size
}

// in is how much of a run the sought one covers, 0 if it is not in it.
func (r *run) in(other run) float64 {
	switch {
	case r.unspaced != other.unspaced:
		return 0
	case r.text == other.text, r.unspaced && strings.Contains(other.text, r.text):
		return float64(len(r.text))
	case !r.unspaced && r.isPrefix() && strings.HasPrefix(other.text, r.text):
		return float64(len(r.text)) / 2
	}
	return 0
}

// highlights are the words as clients look for them in what they show.
func highlights(term string) []string {
	words := strings.FieldsFunc(strings.ToLower(term), func(r rune) bool { return kindOf(r) == between })
	if words == nil {
		words = []string{}
	}
	return words
}
