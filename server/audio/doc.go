// Package audio knows sound as bytes: the containers Ogg, WebM and MP4, Opus packets within them, what a recording
// lasts and how loud it is. It is pure: no clock, network or database.
//
// Everything it reads comes from strangers. Nothing that a file says about itself is believed where it can be
// counted: a duration is the sum of its packets' durations, and a container that disagrees is refused.
// A recording has one Opus stream of one or two channels, or AAC in MP4, which is only counted; what holds something else (music in another codec, video) is
// [ErrUnsupported], which is no crime; what pretends to be a recording and is not well-formed is a [*MalformedError].
//
// All counts of samples are at 48,000 a second, Opus' own clock, whatever the recording's rate.
package audio
