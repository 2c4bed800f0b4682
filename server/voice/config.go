package voice

import (
	"fmt"
	"time"
)

// Config is the section "voice" of the configuration file.
type Config struct {
	// MaxDuration is the longest voice message that users of this server may send; 0 is no limit.
	MaxDuration time.Duration `mapstructure:"max_duration"`
	// FalseClaims says what happens to a voice message whose claims about its file (duration, size, type) are wrong:
	// "correct" puts them right, "refuse" refuses the message.
	FalseClaims string `mapstructure:"false_claims"`
	// Waveforms fills in the waveform of a voice message that has none.
	Waveforms bool `mapstructure:"waveforms"`
	// RequireOpus refuses voice messages whose file is here but is no well-formed Ogg, WebM or MP4 file of one Opus stream,
	// which means that nothing about it can be checked.
	RequireOpus bool `mapstructure:"require_opus"`
}

// The values of FalseClaims.
const (
	CorrectClaims = "correct"
	RefuseClaims  = "refuse"
)

// DefaultConfig is what holds where the configuration file says nothing.
func DefaultConfig() Config {
	return Config{MaxDuration: 30 * time.Minute, FalseClaims: CorrectClaims, Waveforms: true}
}

// Validate finds values that cannot be.
func (c Config) Validate() error {
	if c.FalseClaims != CorrectClaims && c.FalseClaims != RefuseClaims {
		return fmt.Errorf("false_claims must be %s or %s, not %q", CorrectClaims, RefuseClaims, c.FalseClaims)
	}
	if c.MaxDuration < 0 {
		return fmt.Errorf("max_duration must not be negative")
	}
	return nil
}
