package storage

import "bytes"

// isVoice looks for the marker of voice messages among the keys of a content, without parsing it: content is canonical JSON, in
// which a quotation mark behind { or , begins a key, since within a string it is escaped.
func isVoice(content []byte) bool {
	return bytes.Contains(content, []byte(`,"org.matrix.msc3245.voice"`)) || bytes.Contains(content, []byte(`{"org.matrix.msc3245.voice"`))
}

// writeVoiceMessages notes the voice messages among new events. An edit is no other message.
func (tx *Tx) writeVoiceMessages(appends []*RoomAppend) error {
	in := tx.inserter("voice_messages", "num, room, pos, event_id, sender", " ON CONFLICT DO NOTHING")
	for _, a := range appends {
		for _, e := range a.Events {
			if e.Pos > 0 && !e.Hidden() && e.Type() == "m.room.message" && isVoice(e.Content()) && !isEdit(e.Content()) {
				in.add(e.Num, a.Room.Num, e.Pos, string(e.ID()), string(e.Sender()))
			}
		}
	}
	return in.flush()
}
