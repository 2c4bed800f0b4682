package syncer

import (
	"context"
	"encoding/json"
	"strconv"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// What becomes known of a voice message after clients have had it reaches them as events of types of ours among the room's
// ephemeral ones, which clients that do not know them pass over. Unlike typing they are not short-lived: each answer has what
// is new since the last one. docs/voice.md
const (
	// playedBy tells the sender who has played it.
	playedBy = "im.parley.voice.played_by"
	// transcript tells everybody in the room what is said in it.
	transcript = "im.parley.voice.transcript"

	// maxPlayedBy and maxTranscripts are how many of them are in one answer; the latest count.
	maxPlayedBy    = 500
	maxTranscripts = 100
)

// gatherVoice asks the database for what is new about voice messages.
func (a *answer) gatherVoice(ctx context.Context) error {
	a.heard, a.words = nil, nil
	if a.heardNews {
		all, err := a.s.o.DB.PlayedReceiptsBetween(ctx, a.r.User, a.from.Pos, a.to.Pos, maxPlayedBy)
		if err != nil {
			return err
		}
		a.heard = map[matrix.RoomID][]storage.PlayedReceipt{}
		for _, r := range all {
			if !a.ignored[r.User] {
				a.heard[r.Room] = append(a.heard[r.Room], r)
			}
		}
		addRooms(a, a.heard)
	}
	return a.gatherTranscripts(ctx)
}

// word is what is said in a message.
type word struct {
	event matrix.EventID
	text  storage.Transcript
}

func (a *answer) gatherTranscripts(ctx context.Context) error {
	var rooms []matrix.RoomID
	asked := map[matrix.RoomID]*item{}
	for i := range a.items {
		if it := &a.items[i]; it.askWords && a.f.Room.Ephemeral.wantsType(transcript) {
			rooms = append(rooms, it.id)
			asked[it.id] = it
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	found, err := a.s.o.DB.TranscriptsBetween(ctx, rooms, a.from.Pos, a.to.Pos, maxTranscripts)
	if err != nil || len(found) == 0 {
		return err
	}
	nums := make([]int64, 0, len(found))
	text := make(map[int64]storage.Transcript, len(found))
	for _, n := range found {
		nums = append(nums, n.Num)
		text[n.Num] = n.Transcript
	}
	events, err := a.s.o.DB.Events(ctx, nums)
	if err != nil {
		return err
	}
	a.words = map[matrix.RoomID][]word{}
	for _, e := range events {
		id := e.RoomID()
		it := asked[id]
		if it == nil || e.RedactedBy != "" || a.ignored[e.Sender()] {
			continue
		}
		// What came while the user was in the room is seen; for the rest the room's rules are asked.
		if e.Pos <= it.pos {
			seen, err := a.s.o.Rooms.VisibleTo(ctx, a.r.User, []*storage.Event{e})
			if err != nil {
				return err
			}
			if len(seen) == 0 {
				continue
			}
		}
		a.words[id] = append(a.words[id], word{e.ID(), text[e.Num]})
	}
	return nil
}

// appendVoice writes the events of an item.
func (a *answer) appendVoice(b []byte, it *item, f *EventFilter) []byte {
	if heard := a.heard[it.id]; len(heard) > 0 && f.wantsType(playedBy) {
		b = appendPlayedBy(separate(b), heard)
	}
	if words := a.words[it.id]; len(words) > 0 && f.wantsType(transcript) {
		b = appendTranscripts(separate(b), words)
	}
	return b
}

// separate writes a comma between the entries of a list.
func separate(b []byte) []byte {
	if b[len(b)-1] != '[' {
		b = append(b, ',')
	}
	return b
}

func appendPlayedBy(b []byte, all []storage.PlayedReceipt) []byte {
	b = append(b, `{"type":"`+playedBy+`","content":{`...)
	byEvent := map[matrix.EventID][]storage.PlayedReceipt{}
	for _, r := range all {
		byEvent[r.Event] = append(byEvent[r.Event], r)
	}
	for event, list := range byEvent {
		b = comma(b)
		b = appendString(b, string(event))
		b = append(b, `:{`...)
		for _, r := range list {
			b = comma(b)
			b = appendString(b, string(r.User))
			b = append(b, `:{"ts":`...)
			b = strconv.AppendInt(b, r.TS, 10)
			b = append(b, '}')
		}
		b = append(b, '}')
	}
	return append(b, `}}`...)
}

func appendTranscripts(b []byte, words []word) []byte {
	b = append(b, `{"type":"`+transcript+`","content":{`...)
	for _, w := range words {
		text, err := json.Marshal(w.text)
		if err != nil {
			panic(err) // three plain fields
		}
		b = comma(b)
		b = appendString(b, string(w.event))
		b = append(b, ':')
		b = append(b, text...)
	}
	return append(b, `}}`...)
}
