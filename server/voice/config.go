package voice

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"parley.im/parley/server/media"
)

// Config is the section "voice" of the configuration file.
type Config struct {
	// MaxDuration is the longest voice message that users of this server may send; 0 is no limit. A room may set a lower
	// one with the state event im.parley.voice.limit.
	MaxDuration time.Duration `mapstructure:"max_duration"`
	// FalseClaims says what happens to a voice message whose claims about its file (duration, size, type) are wrong:
	// "correct" puts them right, "refuse" refuses the message.
	FalseClaims string `mapstructure:"false_claims"`
	// Waveforms fills in the waveform of a voice message that has none.
	Waveforms bool `mapstructure:"waveforms"`
	// RequireOpus refuses voice messages whose file is here but is no well-formed Ogg, WebM or MP4 file of one Opus stream,
	// which means that nothing about it can be checked.
	RequireOpus bool `mapstructure:"require_opus"`
	// Live: voice messages that are listened to while they are spoken.
	Live media.LiveConfig `mapstructure:"live"`
	// Transcripts: what is said, as text. docs/voice.md leads through the set-up.
	Transcripts TranscriptConfig `mapstructure:"transcripts"`
}

// TranscriptConfig is about transcripts of voice messages in clear; they are off while Endpoint is empty.
type TranscriptConfig struct {
	// Endpoint is the base URL of a speech service with OpenAI's interface, such as http://127.0.0.1:8080: voice messages
	// are sent to /v1/audio/transcriptions there.
	Endpoint string `mapstructure:"endpoint"`
	// APIKeyFile is a file with the service's key, if it wants one. It is read anew for each message.
	APIKeyFile string `mapstructure:"api_key_file"`
	// Model is what the service calls the model that it is to use.
	Model string `mapstructure:"model"`
	// Language is what people speak here, as an ISO 639-1 code such as de; empty lets the service find out.
	Language string `mapstructure:"language"`
	// Timeout bounds one request to the service.
	Timeout time.Duration `mapstructure:"timeout"`
	// MaxDuration is the longest recording that is transcribed; a minute takes 2 MB of memory meanwhile.
	MaxDuration time.Duration `mapstructure:"max_duration"`
	// Workers is how many requests are made at the same time.
	Workers int `mapstructure:"workers"`
	// Attempts is how often it is tried to get one transcript, over about half a day.
	Attempts int `mapstructure:"attempts"`
	// PushWait is how long a notification of a voice message waits for its transcript, to bring it along; 0 sends it at once and
	// without. Notifications pass through the phone makers' services, as far as a client has not asked for event IDs only.
	PushWait time.Duration `mapstructure:"push_wait"`
	// Remote also transcribes what users of other servers say.
	Remote bool `mapstructure:"remote"`
}

// The values of FalseClaims.
const (
	CorrectClaims = "correct"
	RefuseClaims  = "refuse"
)

// DefaultConfig is what holds where the configuration file says nothing.
func DefaultConfig() Config {
	return Config{
		MaxDuration: 30 * time.Minute, FalseClaims: CorrectClaims, Waveforms: true, Live: media.DefaultLiveConfig(),
		Transcripts: TranscriptConfig{
			Model: "whisper-1", Timeout: 2 * time.Minute, MaxDuration: 10 * time.Minute, Workers: 1, Attempts: 20, PushWait: 3 * time.Second, Remote: true,
		},
	}
}

// Validate finds values that cannot be.
func (c Config) Validate() error {
	if c.FalseClaims != CorrectClaims && c.FalseClaims != RefuseClaims {
		return fmt.Errorf("false_claims must be %s or %s, not %q", CorrectClaims, RefuseClaims, c.FalseClaims)
	}
	if c.MaxDuration < 0 {
		return fmt.Errorf("max_duration must not be negative")
	}
	if err := c.Live.Validate(); err != nil {
		return fmt.Errorf("live: %w", err)
	}
	if err := c.Transcripts.validate(); err != nil {
		return fmt.Errorf("transcripts.%w", err)
	}
	return nil
}

func (c TranscriptConfig) validate() error {
	if c.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("endpoint must be the URL of a speech service, such as http://127.0.0.1:8080, not %q", c.Endpoint)
	}
	if c.Timeout <= 0 || c.MaxDuration <= 0 || c.Workers <= 0 || c.Attempts <= 0 {
		return fmt.Errorf("timeout, max_duration, workers and attempts must be above 0")
	}
	if c.PushWait < 0 || c.PushWait > maxPushWait {
		return fmt.Errorf("push_wait must be from 0 to %v", maxPushWait)
	}
	return nil
}

// maxPushWait is the longest that a notification may wait.
const maxPushWait = 30 * time.Second

// url is where recordings are sent to. A base that ends in /v1 already, as many write it, is taken too.
func (c TranscriptConfig) url() string {
	return strings.TrimSuffix(strings.TrimRight(c.Endpoint, "/"), "/v1") + "/v1/audio/transcriptions"
}
