package matrix

// appendRedacted appends the redacted form of a canonical event, which is canonical as well; f are its fields. For the
// reference hash and for signatures it leaves out the signatures.
// Spec v1.19 rooms/v1/#redactions, rooms/v6/#redactions, rooms/v8/#redactions, rooms/v9/#redactions, rooms/v11/#redactions
func appendRedacted(dst, event []byte, f *fields, v *RoomVersion, unsigned bool) []byte {
	typ, _ := stringValue(f.typ)
	dst = append(dst, '{')
	start := len(dst)
	members(event, func(k, val []byte) bool {
		if !keptInEvent(k, v) || unsigned && string(k) == "signatures" {
			return true
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), k...), '"', ':')
		if string(k) == "content" {
			dst = appendRedactedContent(dst, val, typ, v)
		} else {
			dst = append(dst, val...)
		}
		return true
	})
	return append(dst, '}')
}

func keptInEvent(key []byte, v *RoomVersion) bool {
	switch string(key) {
	case "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth",
		"prev_events", "auth_events", "origin_server_ts":
		return true
	case "prev_state", "origin", "membership":
		return !v.RedactionOfVersion11
	}
	return false
}

func appendRedactedContent(dst, content []byte, typ string, v *RoomVersion) []byte {
	if typ == TypeCreate && v.RedactionOfVersion11 {
		return append(dst, content...)
	}
	dst = append(dst, '{')
	start := len(dst)
	if !hasKeptContent(typ) {
		return append(dst, '}')
	}
	members(content, func(k, val []byte) bool {
		signedOnly := v.RedactionOfVersion11 && typ == TypeMember && string(k) == "third_party_invite" && isObject(val)
		if !signedOnly && !keptInContent(string(k), typ, v) {
			return true
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), k...), '"', ':')
		if signedOnly {
			dst = appendWithout(dst, val, func(key []byte) bool { return string(key) != "signed" })
		} else {
			dst = append(dst, val...)
		}
		return true
	})
	return append(dst, '}')
}

// hasKeptContent reports whether a redacted event of the type may keep some of its content.
func hasKeptContent(typ string) bool {
	switch typ {
	case TypeMember, TypeCreate, TypeJoinRules, TypePowerLevels, TypeAliases, TypeHistoryVisibility, TypeRedaction:
		return true
	}
	return false
}

func keptInContent(key, typ string, v *RoomVersion) bool {
	switch typ {
	case TypeMember:
		return key == "membership" || key == "join_authorised_via_users_server" && v.RedactionKeepsVia
	case TypeCreate:
		return key == "creator"
	case TypeJoinRules:
		return key == "join_rule" || key == "allow" && v.RedactionKeepsAllow
	case TypePowerLevels:
		switch key {
		case "ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default":
			return true
		case "invite":
			return v.RedactionOfVersion11
		}
	case TypeAliases:
		return key == "aliases" && v.AliasesRule
	case TypeHistoryVisibility:
		return key == "history_visibility"
	case TypeRedaction:
		return key == "redacts" && v.RedactsInContent
	}
	return false
}
