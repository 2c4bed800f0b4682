// Package voice is what Parley does with voice messages beyond storing them. docs/voice.md describes it for those who
// write clients.
//
// A voice message is an m.room.message of msgtype m.audio with the flag org.matrix.msc3245.voice, as clients have sent
// it since 2021. What such a message says of its file (duration, size, type, waveform) is a claim. Where the server can
// see the file, the claims of its own users are corrected before the event is built and signed, and a waveform that is
// missing is filled in. In encrypted rooms it sees nothing, and does nothing.
package voice
