package room

import (
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
	var content map[string]json.RawMessage
	if err := json.Unmarshal(r.Content, &content); err != nil || content == nil {
		return matrix.BadJSON("the content must be a JSON object")
	}
	if r.Type == matrix.TypeRedaction && r.Redacts == "" {
		_ = json.Unmarshal(content["redacts"], &r.Redacts) // anything else redacts nothing
	}
	if r.StateKey == nil {
		return nil
	}
	switch r.Type {
	case matrix.TypeCanonicalAlias:
		return s.checkCanonicalAlias(ctx, r, content)
	case matrix.TypeCreate:
		return matrix.Forbidden("a room is created once")
	}
	return nil
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
