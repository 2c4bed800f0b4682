package matrix

import "strconv"

// member checks m.room.member events: rule 4 in room versions 6 to 11, 5 in the others. The numbers in the comments are
// those of room versions 8 to 11.
func (a *authorizer) member(rule int) *AuthError {
	// 4.1. There is a state key and a membership.
	if !a.hasStateKey {
		return deny(rule, ".1", "the member event has no state key")
	}
	if _, ok := stringValue(a.ContentMember("membership")); !ok {
		return deny(rule, ".1", "the member event has no membership")
	}
	n := 2
	if a.v.RestrictedJoins {
		n = 3
		// 4.2. The server of the user who let the sender in has signed.
		if via := a.ContentMember("join_authorised_via_users_server"); via != nil {
			id, _ := stringValue(via)
			if user, err := ParseUserID(id); err != nil || !a.SignedBy(user.Server()) {
				return deny(rule, ".2.1", "the event is not signed by the server of join_authorised_via_users_server")
			}
		}
	}
	sub := func(i int, s string) (int, string) { return rule, "." + strconv.Itoa(n+i) + s }
	switch a.membership {
	case Join:
		return a.join(sub(0, ""))
	case Invite:
		return a.invite(sub(1, ""))
	case Leave:
		return a.leave(sub(2, ""))
	case Ban:
		return a.ban(sub(3, ""))
	case Knock:
		if a.v.Knocking {
			return a.knock(sub(4, ""))
		}
	}
	last := 4
	if a.v.Knocking {
		last = 5
	}
	r, s := sub(last, "")
	return deny(r, s, "the membership %q is not known", a.membership)
}

// 4.3. Join.
func (a *authorizer) join(rule int, sub string) *AuthError {
	// 4.3.1. The creator may join right after the create event.
	if len(a.prev) == 1 && a.prev[0] == a.create.id {
		creator := a.create.sender
		if a.v.CreatorInContent {
			creator = UserID(a.create.ContentString("creator"))
		}
		if a.stateKey == string(creator) {
			return nil
		}
	}
	// 4.3.2. One joins oneself only.
	if a.stateKey != string(a.sender) {
		return deny(rule, sub+".2", "%s cannot join for %s", a.sender, a.stateKey)
	}
	// 4.3.3. Not when banned.
	membership := a.membershipOf(a.sender)
	if membership == Ban {
		return deny(rule, sub+".3", "%s is banned from the room", a.sender)
	}
	last := 6
	if a.v.RestrictedJoins {
		last = 7
	}
	joinRule := a.joinRule()
	switch {
	// 4.3.4. invite and knock: the invited may join, the joined join again.
	case joinRule == JoinRuleInvite, joinRule == JoinRuleKnock && a.v.Knocking:
		if membership == Invite || membership == Join {
			return nil
		}
		return deny(rule, sub+".4", "%s is not invited", a.sender)
	// 4.3.5. restricted: as well who is let in by a member who may invite.
	case joinRule == JoinRuleRestricted && a.v.RestrictedJoins,
		joinRule == JoinRuleKnockRestricted && a.v.KnockRestricted:
		if membership == Invite || membership == Join {
			return nil
		}
		via := UserID(a.ContentString("join_authorised_via_users_server"))
		if via == "" || a.membershipOf(via) != Join || a.power(via) < a.powerLevels().Invite {
			return deny(rule, sub+".5.2", "%s is not let in by a member who may invite", a.sender)
		}
		return nil
	// 4.3.6. public.
	case joinRule == JoinRulePublic:
		return nil
	}
	return deny(rule, sub+"."+strconv.Itoa(last), "the room cannot be joined by its join rule")
}

// joinRule is the room's join rule; a room without one is invite only.
func (a *authorizer) joinRule() string {
	rules := a.state(TypeJoinRules, "")
	if rules == nil {
		return JoinRuleInvite
	}
	return rules.ContentString("join_rule")
}

// 4.4. Invite.
func (a *authorizer) invite(rule int, sub string) *AuthError {
	// 4.4.1. Third-party invites.
	if invite := a.ContentMember("third_party_invite"); invite != nil {
		return a.thirdPartyInvite(invite, rule, sub+".1")
	}
	// 4.4.2. The sender is in the room.
	if a.membershipOf(a.sender) != Join {
		return deny(rule, sub+".2", "%s is not in the room", a.sender)
	}
	// 4.4.3. The target is neither in the room nor banned.
	if m := a.membershipOf(UserID(a.stateKey)); m == Join || m == Ban {
		return deny(rule, sub+".3", "%s cannot be invited: their membership is %s", a.stateKey, m)
	}
	// 4.4.4. The sender may invite.
	if a.power(a.sender) >= a.powerLevels().Invite {
		return nil
	}
	return deny(rule, sub+".5", "%s has not the power to invite", a.sender)
}

// 4.4.1. Third-party invites.
func (a *authorizer) thirdPartyInvite(invite []byte, rule int, sub string) *AuthError {
	// 4.4.1.1. The target is not banned.
	if a.membershipOf(UserID(a.stateKey)) == Ban {
		return deny(rule, sub+".1", "%s is banned from the room", a.stateKey)
	}
	// 4.4.1.2. There is something signed.
	signed := member(invite, "signed")
	if !isObject(signed) {
		return deny(rule, sub+".2", "the third-party invite has no signed part")
	}
	// 4.4.1.3. With mxid and token.
	mxid, ok := stringMember(signed, "mxid")
	token, ok2 := stringMember(signed, "token")
	if !ok || !ok2 {
		return deny(rule, sub+".3", "the signed part has no mxid and token")
	}
	// 4.4.1.4. For the target.
	if mxid != a.stateKey {
		return deny(rule, sub+".4", "the third-party invite is for another user")
	}
	// 4.4.1.5. There is an invite with the token in the room.
	pending := a.state(TypeThirdPartyInvite, token)
	if pending == nil {
		return deny(rule, sub+".5", "the room has no third-party invite with this token")
	}
	// 4.4.1.6. By the same sender.
	if pending.sender != a.sender {
		return deny(rule, sub+".6", "the third-party invite was sent by somebody else")
	}
	// 4.4.1.7. Signed with a key of the invite.
	if signedWithAny(signed, thirdPartyKeys(pending.content)) {
		return nil
	}
	return deny(rule, sub+".8", "no signature of the third-party invite is valid")
}

const (
	maxThirdPartyKeys       = 10
	maxThirdPartySignatures = 10
)

// thirdPartyKeys are the keys in the content of an m.room.third_party_invite: public_key and those in public_keys.
func thirdPartyKeys(content []byte) (keys []*PublicKey) {
	add := func(value []byte) {
		if text, ok := stringValue(value); ok && len(keys) < maxThirdPartyKeys {
			if key, err := ParsePublicKey(text); err == nil {
				keys = append(keys, key)
			}
		}
	}
	add(member(content, "public_key"))
	elements(member(content, "public_keys"), func(entry []byte) bool {
		add(member(entry, "public_key"))
		return true
	})
	return keys
}

// signedWithAny reports whether any signature in a canonical object was made with any of the keys.
func signedWithAny(object []byte, keys []*PublicKey) bool {
	if len(keys) == 0 {
		return false
	}
	message := appendSignable(nil, object)
	valid, tried := false, 0
	members(member(object, "signatures"), func(_, signatures []byte) bool {
		members(signatures, func(_, value []byte) bool {
			text, _ := stringValue(value)
			signature, err := decodeBase64(text)
			for _, key := range keys {
				valid = valid || err == nil && key.Verify(message, signature)
			}
			tried++
			return !valid && tried < maxThirdPartySignatures
		})
		return !valid && tried < maxThirdPartySignatures
	})
	return valid
}

// 4.5. Leave.
func (a *authorizer) leave(rule int, sub string) *AuthError {
	sender, target := a.membershipOf(a.sender), a.membershipOf(UserID(a.stateKey))
	// 4.5.1. Leaving, refusing an invite, taking back a knock.
	if a.stateKey == string(a.sender) {
		if sender == Invite || sender == Join || sender == Knock && a.v.Knocking {
			return nil
		}
		return deny(rule, sub+".1", "%s is not in the room", a.sender)
	}
	// 4.5.2. To kick, the sender is in the room.
	if sender != Join {
		return deny(rule, sub+".2", "%s is not in the room", a.sender)
	}
	// 4.5.3. To unban takes the ban level.
	mine := a.power(a.sender)
	if target == Ban && mine < a.powerLevels().Ban {
		return deny(rule, sub+".3", "%s has not the power to unban", a.sender)
	}
	// 4.5.4. The kick level, and more power than the target.
	if mine >= a.powerLevels().Kick && a.power(UserID(a.stateKey)) < mine {
		return nil
	}
	return deny(rule, sub+".5", "%s has not the power to kick %s", a.sender, a.stateKey)
}

// 4.6. Ban.
func (a *authorizer) ban(rule int, sub string) *AuthError {
	// 4.6.1. The sender is in the room.
	if a.membershipOf(a.sender) != Join {
		return deny(rule, sub+".1", "%s is not in the room", a.sender)
	}
	// 4.6.2. The ban level, and more power than the target.
	mine := a.power(a.sender)
	if mine >= a.powerLevels().Ban && a.power(UserID(a.stateKey)) < mine {
		return nil
	}
	return deny(rule, sub+".3", "%s has not the power to ban %s", a.sender, a.stateKey)
}

// 4.7. Knock.
func (a *authorizer) knock(rule int, sub string) *AuthError {
	// 4.7.1. The join rule lets people knock.
	if r := a.joinRule(); r != JoinRuleKnock && (r != JoinRuleKnockRestricted || !a.v.KnockRestricted) {
		return deny(rule, sub+".1", "the join rule does not let people knock")
	}
	// 4.7.2. One knocks for oneself only.
	if a.stateKey != string(a.sender) {
		return deny(rule, sub+".2", "%s cannot knock for %s", a.sender, a.stateKey)
	}
	// 4.7.3. Not from within, not when invited or banned.
	if m := a.membershipOf(a.sender); m == Ban || m == Invite || m == Join {
		return deny(rule, sub+".4", "%s cannot knock: their membership is %s", a.sender, m)
	}
	return nil
}
