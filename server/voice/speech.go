package voice

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"parley.im/parley/storage"
)

const (
	maxSpeechAnswer = 4 << 20 // bytes; verbose_json tells the time of each word
	maxKey          = 4 << 10
	// defaultPause is how long a service that answers 429 without Retry-After is left alone, and maxPause the longest of all.
	defaultPause = 30 * time.Second
	maxPause     = time.Hour
)

// ask has a WAV file transcribed. The error is hopeless if the service says that it will never do it, busy if it wants to
// be asked later.
func (s *Service) ask(ctx context.Context, wav []byte) (storage.Transcript, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Config.Transcripts.Timeout)
	defer cancel()
	s.mu.Lock()
	format := "verbose_json" // it tells the language
	if s.jsonOnly {
		format = "json"
	}
	s.mu.Unlock()
	t, err := s.askFor(ctx, wav, format)
	if refused, ok := err.(*refusedFormat); ok && format == "verbose_json" {
		s.Log.Info("the speech service knows no verbose_json", "err", refused.error)
		s.mu.Lock()
		s.jsonOnly = true
		s.mu.Unlock()
		return s.askFor(ctx, wav, "json")
	}
	return t, err
}

// refusedFormat is the error of a service that does not know the response_format. It has not looked at the audio then.
type refusedFormat struct{ error }

func (s *Service) askFor(ctx context.Context, wav []byte, format string) (t storage.Transcript, err error) {
	c := s.Config.Transcripts
	body, contentType, err := speechForm(c, wav, format)
	if err != nil {
		return t, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url(), bytes.NewReader(body))
	if err != nil {
		return t, err
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Accept", "application/json")
	if c.APIKeyFile != "" {
		key, err := readKey(c.APIKeyFile)
		if err != nil {
			return t, err
		}
		r.Header.Set("Authorization", "Bearer "+key)
	}
	answer, err := s.Client.Do(r)
	if err != nil {
		return t, fmt.Errorf("ask the speech service: %w", err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, maxSpeechAnswer+1))
	if err != nil {
		return t, fmt.Errorf("read the speech service's answer: %w", err)
	}
	if len(content) > maxSpeechAnswer {
		return t, hopeless{fmt.Errorf("the speech service's answer is longer than %d bytes", maxSpeechAnswer)}
	}
	if err := s.statusError(answer, content); err != nil {
		return t, err
	}
	return readSpeech(content, c.Language)
}

// statusError says what a status means for the job. The body may hold what was said, so it is not put into the error.
func (s *Service) statusError(answer *http.Response, body []byte) error {
	err := fmt.Errorf("the speech service answers %d", answer.StatusCode)
	switch code := answer.StatusCode; {
	case code == http.StatusOK:
		return nil
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable && answer.Header.Get("Retry-After") != "":
		return busy{err, retryAfter(answer.Header.Get("Retry-After"), s.Now())}
	case code == http.StatusBadRequest || code == http.StatusUnprocessableEntity:
		if bytes.Contains(body, []byte("response_format")) {
			return &refusedFormat{err}
		}
		return hopeless{err}
	case code == http.StatusRequestEntityTooLarge || code == http.StatusUnsupportedMediaType:
		return hopeless{err}
	}
	return err // also for 401, 403 and 404, which are the operator's to mend
}

func speechForm(c TranscriptConfig, wav []byte, format string) (body []byte, contentType string, err error) {
	var b bytes.Buffer
	b.Grow(len(wav) + 2048)
	form := multipart.NewWriter(&b)
	fields := [][2]string{{"model", c.Model}, {"response_format", format}, {"language", c.Language}}
	for _, field := range fields {
		if field[1] == "" {
			continue
		}
		if err := form.WriteField(field[0], field[1]); err != nil {
			return nil, "", err
		}
	}
	part, err := form.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="file"; filename="voice.wav"`}, "Content-Type": {"audio/wav"},
	})
	if err != nil {
		return nil, "", err
	}
	if _, err := part.Write(wav); err != nil {
		return nil, "", err
	}
	err = form.Close()
	return b.Bytes(), form.FormDataContentType(), err
}

func readKey(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read the speech service's key: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKey))
	return strings.TrimSpace(string(b)), err
}

// retryAfter reads the header of that name, which has seconds or a date. Spec RFC 9110, 10.2.3
func retryAfter(header string, now time.Time) time.Duration {
	wait := defaultPause
	if seconds, err := strconv.Atoi(strings.TrimSpace(header)); err == nil {
		wait = time.Duration(min(max(seconds, 0), int(maxPause/time.Second))) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, time.Second), maxPause)
}

// readSpeech reads json and verbose_json.
func readSpeech(content []byte, fallback string) (t storage.Transcript, err error) {
	var answer struct {
		Text     *string `json:"text"`
		Language string  `json:"language"`
	}
	if err := json.Unmarshal(content, &answer); err != nil || answer.Text == nil {
		return t, fmt.Errorf("the speech service's answer is no transcript")
	}
	t.Text = cleanText(*answer.Text)
	if t.Language = languageTag(answer.Language); t.Language == "" {
		t.Language = fallback
	}
	return t, nil
}

// cleanText leaves lines and words, and not more than fit.
func cleanText(text string) string {
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "")))
	if len(text) > maxTranscript {
		text = strings.ToValidUTF8(text[:maxTranscript], "")
	}
	return text
}

// languageTags are the languages that speech services call by their English names and that are spoken most.
var languageTags = map[string]string{
	"arabic": "ar", "bengali": "bn", "bulgarian": "bg", "cantonese": "yue", "catalan": "ca", "chinese": "zh", "croatian": "hr", "czech": "cs", "danish": "da",
	"dutch": "nl", "english": "en", "estonian": "et", "finnish": "fi", "french": "fr", "german": "de", "greek": "el", "hebrew": "he", "hindi": "hi",
	"hungarian": "hu", "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "latvian": "lv", "lithuanian": "lt",
	"malay": "ms", "norwegian": "no", "persian": "fa", "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "serbian": "sr",
	"slovak": "sk", "slovenian": "sl", "spanish": "es", "swahili": "sw", "swedish": "sv", "tagalog": "tl", "tamil": "ta", "telugu": "te",
	"thai": "th", "turkish": "tr", "ukrainian": "uk", "urdu": "ur", "vietnamese": "vi", "welsh": "cy",
}

// languageTag is the tag of a language that is given by its tag or by its English name; empty if it is not known.
func languageTag(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	if tag, ok := languageTags[name]; ok {
		return tag
	}
	if len(name) != 2 && len(name) != 3 {
		return ""
	}
	for _, c := range name {
		if c < 'a' || c > 'z' {
			return ""
		}
	}
	return name
}
