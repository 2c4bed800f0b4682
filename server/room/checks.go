package room

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"parley.im/parley/server/matrix"
)

// checkSend checks what the authorization rules do not: the shape of what a client wants to send.
func (s *Service) checkSend(ctx context.Context, r *SendRequest) error {
	if r.Type == "" {
		return matrix.InvalidParam("an event must have a type")
	}
	if start := bytes.TrimLeft(r.Content, " \t\r\n"); len(start) == 0 || start[0] != '{' { // the rest shows when the event is built
		return matrix.BadJSON("the content must be a JSON object")
	}
	switch {
	case r.Type == matrix.TypeRedaction && r.Redacts == "":
		content, err := object(r.Content)
		if err != nil {
			return err
		}
		_ = json.Unmarshal(content["redacts"], &r.Redacts) // anything else redacts nothing
	case r.StateKey != nil && r.Type == matrix.TypeCreate:
		return matrix.InvalidParam("a room is created once")
	case r.StateKey != nil && r.Type == matrix.TypeCanonicalAlias:
		content, err := object(r.Content)
		if err != nil {
			return err
		}
		return s.checkCanonicalAlias(ctx, r, content)
	}
	return nil
}

func object(raw json.RawMessage) (map[string]json.RawMessage, error) {
	var content map[string]json.RawMessage
	if err := json.Unmarshal(raw, &content); err != nil || content == nil {
		return nil, matrix.BadJSON("the content must be a JSON object")
	}
	return content, nil
}

// checkCanonicalAlias makes sure that aliases that are new in the event point to the room.
// Spec v1.19 client-server-api/#mroomcanonical_alias, #put_matrixclientv3roomsroomidstateeventtypestatekey
func (s *Service) checkCanonicalAlias(ctx context.Context, r *SendRequest, content map[string]json.RawMessage) error {
	known := map[string]bool{}
	room, err := s.Room(ctx, r.Room)
	if err != nil {
		return err
	}
	old, err := s.stateEvent(ctx, room.Num, room.Snapshot().Root, r.Type, "", nil)
	if err != nil {
		return err
	}
	if old != nil {
		var before map[string]json.RawMessage
		_ = json.Unmarshal(old.Content(), &before) // an event's content is always an object
		aliases, _ := canonicalAliases(before)
		for _, alias := range aliases {
			known[alias] = true
		}
	}
	aliases, err := canonicalAliases(content)
	if err != nil {
		return err
	}
	for _, text := range aliases {
		if known[text] {
			continue
		}
		alias, err := matrix.ParseRoomAlias(text)
		if err != nil {
			return err
		}
		bad := matrix.NewError(400, "M_BAD_ALIAS", "the alias %s does not point to this room", alias)
		found, err := s.ResolveAlias(ctx, alias)
		if e := (*matrix.Error)(nil); errors.As(err, &e) || err == nil && found.RoomID != r.Room {
			return bad
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func canonicalAliases(content map[string]json.RawMessage) ([]string, error) {
	var aliases []string
	if raw, ok := content["alias"]; ok && string(raw) != "null" {
		var alias string
		if json.Unmarshal(raw, &alias) != nil {
			return nil, matrix.InvalidParam("alias must be a string")
		}
		if alias != "" {
			aliases = append(aliases, alias)
		}
	}
	if raw, ok := content["alt_aliases"]; ok {
		var alternatives []string
		if json.Unmarshal(raw, &alternatives) != nil {
			return nil, matrix.InvalidParam("alt_aliases must be a list of strings")
		}
		aliases = append(aliases, alternatives...)
	}
	return aliases, nil
}
