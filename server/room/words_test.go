package room

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"parley.im/parley/storage"
)

func TestWhatCountsAsAWord(t *testing.T) {
	for _, c := range []struct {
		text, term string
		found      bool
	}{
		{"Fresh BREAD today", "bread", true},
		{"Fresh bread today", "today fresh", true},
		{"the meeting is at five", "meet", true},
		{"the meeting is at five", "eeting", false},
		{"an apple", "a", false},
		{"plan a", "a", true},
		{"Crème brûlée im Café", "creme cafe", true},
		{"cafe", "Café", true},
		{"Gruß aus Köln", "koln gruß", true},
		{"Привет, мир", "привет", true},
		{"Привет, мир", "при", true},
		{"ｐａｒｌｅｙ", "parley", true},
		{"see https://example.org/minutes_of_may.pdf", "minutes may", true},
		{"don't", "don't", true},
		{"今天有新鲜面包", "面包", true},
		{"今天有新鲜面包", "面", true},
		{"今天有新鲜面包", "包", true},
		{"今天有新鲜面包", "新鲜面", true},
		{"今天有新鲜面包", "面新", false},
		{"今天有新鲜面包", "今天 面包", true},
		{"東京タワーへ行きます", "タワー", true},
		{"東京ﾀﾜｰ", "タワー", true},
		{"が", "か", false},
		{"학교에서 만나요", "학교", true},
		{"대학교", "학교", true},
		{"ไปกินข้าว", "กิน", true},
		{"iPhone15 里程碑", "iphone 里程", true},
		{"well done 👍🏽", "👍", true},
		{"", "x", false},
		{"...", "!", false},
	} {
		q := newSought(c.term)
		got := len(q) > 0 && q.rank(c.text) > 0
		if got != c.found {
			t.Errorf("%q in %q: %v", c.term, c.text, got)
		}
		if got && !indexFinds(c.text, q) {
			t.Errorf("%q in %q: the index does not find it", c.term, c.text)
		}
	}
	if q := newSought("meet"); q.rank("meet me") <= q.rank("meeting me") {
		t.Error("a whole word has no higher rank than the beginning of one")
	}
}

// indexFinds does what the index does.
func indexFinds(text string, q sought) bool {
	words := indexWords(text)
	for _, w := range q.indexed() {
		if !slices.ContainsFunc(words, func(s string) bool { return s == w.Text || w.Prefix && strings.HasPrefix(s, w.Text) }) {
			return false
		}
	}
	return true
}

// TestIndexMissesNothing: what the comparison of texts finds, the index finds too.
func TestIndexMissesNothing(t *testing.T) {
	alphabet := []rune("aAbé e9面包か゛ㄱ학กิ👍\u0301\u0640ﬁǅ-_'.ⅷ㎏")
	gen := rapid.StringOfN(rapid.OneOf(rapid.SampledFrom(alphabet), rapid.Rune()), 0, 12, -1)
	rapid.Check(t, func(t *rapid.T) {
		text, term := gen.Draw(t, "text"), gen.Draw(t, "term")
		if rapid.Bool().Draw(t, "part") && text != "" {
			i := rapid.IntRange(0, len(text)-1).Draw(t, "from")
			term = strings.ToValidUTF8(text[i:rapid.IntRange(i, len(text)).Draw(t, "to")], "")
		}
		q := newSought(term)
		for _, w := range append(indexWords(text), storageTexts(q.indexed())...) {
			if !utf8.ValidString(w) || w == "" || len(w) > maxWordBytes+8 {
				t.Fatalf("%q is a bad word", w)
			}
		}
		if len(q) > 0 && q.rank(text) > 0 && !indexFinds(text, q) {
			t.Fatalf("%q is in %q, and the index does not find it: %q", term, text, indexWords(text))
		}
		if all := newSought(text); len(all) > 0 && len(all) < maxSought && all.rank(text) == 0 {
			t.Fatalf("%q does not find itself", text)
		}
	})
}

func storageTexts(words []storage.SearchWord) (texts []string) {
	for _, w := range words {
		texts = append(texts, w.Text)
	}
	return texts
}
