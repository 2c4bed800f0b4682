package room

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// ---- aliases

// CreateAlias is PUT /directory/room/{alias}. Errors: M_INVALID_PARAM (not an alias of this server), M_NOT_FOUND (room),
// M_FORBIDDEN (the user is not in the room), M_UNKNOWN with status 409 (taken).
func (s *Service) CreateAlias(ctx context.Context, user matrix.UserID, alias matrix.RoomAlias, room matrix.RoomID) error {
	if alias.Server() != s.o.ServerName {
		return matrix.InvalidParam("aliases on this server end in :%s", s.o.ServerName)
	}
	if _, err := s.Room(ctx, room); err != nil {
		return err
	}
	if err := s.mustBeJoined(ctx, room, user); err != nil {
		return err
	}
	err := s.o.DB.CreateAlias(ctx, storage.Alias{Alias: alias, RoomID: room, Creator: user, CreatedMS: s.o.Now().UnixMilli()})
	if errors.Is(err, storage.ErrTaken) {
		return matrix.NewError(http.StatusConflict, "M_UNKNOWN", "the alias %s exists already", alias)
	}
	return err
}

// DeleteAlias is DELETE /directory/room/{alias}: for who made it, who may send m.room.canonical_alias in its room, and administrators of
// the server. The alias goes out of the room's canonical alias event if the user may send one. Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) DeleteAlias(ctx context.Context, user matrix.UserID, alias matrix.RoomAlias, admin bool) error {
	a, err := s.localAlias(ctx, alias)
	if err != nil {
		return err
	}
	mayEdit, err := s.maySend(ctx, a.RoomID, user, matrix.TypeCanonicalAlias)
	if err != nil {
		return err
	}
	if !admin && !mayEdit && a.Creator != user {
		return matrix.Forbidden("only who made an alias, or may change the room's canonical alias, may delete it")
	}
	if err := s.o.DB.DeleteAlias(ctx, alias); errors.Is(err, storage.ErrNotFound) {
		return matrix.NotFound("there is no alias %s", alias)
	} else if err != nil {
		return err
	}
	if !mayEdit {
		return nil
	}
	if err := s.dropCanonicalAlias(ctx, user, a.RoomID, alias); err != nil {
		s.o.Log.Warn("take a deleted alias out of the canonical alias", "room", a.RoomID, "err", err)
	}
	return nil
}

// dropCanonicalAlias takes an alias out of the room's m.room.canonical_alias.
func (s *Service) dropCanonicalAlias(ctx context.Context, user matrix.UserID, room matrix.RoomID, alias matrix.RoomAlias) error {
	r, err := s.Room(ctx, room)
	if err != nil {
		return err
	}
	e, err := s.StateAt(ctx, room, r.Snapshot().Root, matrix.TypeCanonicalAlias, "")
	if err != nil || e == nil {
		return err
	}
	var content map[string]json.RawMessage
	if err := json.Unmarshal(e.Content(), &content); err != nil {
		return err
	}
	changed := false
	var main matrix.RoomAlias
	if json.Unmarshal(content["alias"], &main) == nil && main == alias {
		delete(content, "alias")
		changed = true
	}
	var alts []matrix.RoomAlias
	if json.Unmarshal(content["alt_aliases"], &alts) == nil && slices.Contains(alts, alias) {
		changed = true
		alts = slices.DeleteFunc(alts, func(a matrix.RoomAlias) bool { return a == alias })
		if delete(content, "alt_aliases"); len(alts) > 0 {
			content["alt_aliases"], _ = json.Marshal(alts) // strings always encode
		}
	}
	if !changed {
		return nil
	}
	body, err := json.Marshal(content)
	if err != nil {
		return err
	}
	empty := ""
	_, err = s.Send(ctx, SendRequest{Room: room, Sender: user, Type: matrix.TypeCanonicalAlias, StateKey: &empty, Content: body})
	return err
}

// ResolveAlias is GET /directory/room/{alias}: of this server or of another, which is asked. M_NOT_FOUND if there is none.
func (s *Service) ResolveAlias(ctx context.Context, alias matrix.RoomAlias) (AliasResponse, error) {
	if alias.Server() == s.o.ServerName {
		return s.ServeAlias(ctx, alias)
	}
	if s.o.Remote == nil {
		return AliasResponse{}, matrix.NotFound("there is no alias %s", alias)
	}
	answer, err := s.o.Remote.ResolveAlias(ctx, alias.Server(), alias)
	if err != nil {
		if matrix.ErrorCode(err) == "M_NOT_FOUND" {
			return AliasResponse{}, matrix.NotFound("there is no alias %s", alias)
		}
		return AliasResponse{}, s.remoteFailed("resolve alias", alias.Server(), err)
	}
	if _, err := matrix.ParseRoomID(string(answer.RoomID)); err != nil {
		return AliasResponse{}, matrix.NotFound("there is no alias %s", alias)
	}
	answer.Servers = validServers(answer.Servers)
	if len(answer.Servers) == 0 {
		answer.Servers = []matrix.ServerName{alias.Server()}
	}
	return answer, nil
}

// ServeAlias answers GET /federation/v1/query/directory: aliases of this server only.
func (s *Service) ServeAlias(ctx context.Context, alias matrix.RoomAlias) (AliasResponse, error) {
	a, err := s.localAlias(ctx, alias)
	if err != nil {
		return AliasResponse{}, err
	}
	r, err := s.Room(ctx, a.RoomID)
	if err != nil {
		return AliasResponse{}, err
	}
	return AliasResponse{RoomID: a.RoomID, Servers: s.serversToJoinThrough(r.Snapshot())}, nil
}

func (s *Service) localAlias(ctx context.Context, alias matrix.RoomAlias) (storage.Alias, error) {
	a, err := s.o.DB.Alias(ctx, alias)
	if errors.Is(err, storage.ErrNotFound) {
		return a, matrix.NotFound("there is no alias %s", alias)
	}
	return a, err
}

// maxAliasServers is how many servers an alias offers to join through.
const maxAliasServers = 50

// serversToJoinThrough lists servers in the room: this one first if it is in it, then those with the most users.
func (s *Service) serversToJoinThrough(snap *Snapshot) []matrix.ServerName {
	servers := make([]matrix.ServerName, 0, len(snap.Servers))
	for server := range snap.Servers {
		servers = append(servers, server)
	}
	slices.SortFunc(servers, func(a, b matrix.ServerName) int {
		switch s.o.ServerName {
		case a:
			return -1
		case b:
			return 1
		}
		return cmp.Or(cmp.Compare(snap.Servers[b], snap.Servers[a]), cmp.Compare(a, b))
	})
	return servers[:min(len(servers), maxAliasServers)]
}

// validServers leaves out what is no server name and what comes twice.
func validServers(servers []matrix.ServerName) []matrix.ServerName {
	var valid []matrix.ServerName
	for _, server := range servers {
		if _, err := matrix.ParseServerName(string(server)); err == nil && !slices.Contains(valid, server) {
			valid = append(valid, server)
		}
		if len(valid) == maxAliasServers {
			break
		}
	}
	return valid
}

// LocalAliases is GET /rooms/{room}/aliases. M_FORBIDDEN for who is not in the room, unless it is world-readable.
func (s *Service) LocalAliases(ctx context.Context, user matrix.UserID, room matrix.RoomID) ([]matrix.RoomAlias, error) {
	r, err := s.Room(ctx, room)
	if matrix.ErrorCode(err) == "M_NOT_FOUND" {
		return nil, matrix.Forbidden("you are not in this room")
	} else if err != nil {
		return nil, err
	}
	if r.Snapshot().HistoryVisibility != "world_readable" {
		if err := s.mustBeJoined(ctx, room, user); err != nil {
			return nil, err
		}
	}
	aliases, err := s.o.DB.RoomAliases(ctx, room)
	if aliases == nil {
		aliases = []matrix.RoomAlias{}
	}
	return aliases, err
}

func (s *Service) mustBeJoined(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	m, err := s.Membership(ctx, room, user)
	if err == nil && m.Membership != matrix.Join {
		err = matrix.Forbidden("you are not in this room")
	}
	return err
}

// maySend reports whether the user is in the room and has the power for a state event of the type. A room we do not know gives false.
func (s *Service) maySend(ctx context.Context, room matrix.RoomID, user matrix.UserID, typ string) (bool, error) {
	r, err := s.Room(ctx, room)
	if matrix.ErrorCode(err) == "M_NOT_FOUND" {
		return false, nil
	} else if err != nil {
		return false, err
	}
	snap := r.Snapshot()
	_, joined := snap.Local[user]
	return joined && snap.Power != nil && snap.Power.CanSend(user, typ, true), nil
}

// remoteFailed makes what a client is told when another server could not be asked.
func (s *Service) remoteFailed(what string, server matrix.ServerName, err error) error {
	var e *matrix.Error
	if errors.As(err, &e) && e.Status < 500 {
		return e
	}
	if errors.Is(err, ErrNotPermitted) {
		return matrix.Forbidden("this server is not allowed to talk to %s", server)
	}
	s.o.Log.Info("another server did not answer", "what", what, "server", server, "err", err)
	return matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the server %s could not be asked", server)
}

// ---- the public room list

// Published is GET /directory/list/room/{room}: whether the room is in the public list. M_NOT_FOUND for a room we do not know.
func (s *Service) Published(ctx context.Context, room matrix.RoomID) (bool, error) {
	if _, err := s.Room(ctx, room); err != nil {
		return false, err
	}
	return s.o.DB.Published(ctx, room)
}

// SetPublished is PUT /directory/list/room/{room}: for who may send m.room.canonical_alias there, and administrators of the server.
// Errors: M_NOT_FOUND, M_FORBIDDEN.
func (s *Service) SetPublished(ctx context.Context, user matrix.UserID, room matrix.RoomID, published, admin bool) error {
	if _, err := s.Room(ctx, room); err != nil {
		return err
	}
	may, err := s.maySend(ctx, room, user, matrix.TypeCanonicalAlias)
	if err != nil {
		return err
	}
	if !may && !admin {
		return matrix.Forbidden("only who may change the room's canonical alias may change the room list")
	}
	return s.o.DB.SetPublished(ctx, "", room, published)
}

// SetPublishedBy is PUT /directory/list/appservice/{network}/{room}; id is the application service's.
func (s *Service) SetPublishedBy(ctx context.Context, id, network string, room matrix.RoomID, published bool) error {
	if network == "" || len(network) > 255 {
		return matrix.InvalidParam("the network must have 1 to 255 bytes")
	}
	if _, err := s.Room(ctx, room); err != nil {
		return err
	}
	return s.o.DB.SetPublished(ctx, id+"|"+network, room, published)
}

// maxPublicRooms is the longest page of the room list.
const maxPublicRooms = 500

// PublicRooms is GET and POST /publicRooms, on both APIs: a page of this server's list, largest room first. Errors: M_INVALID_PARAM
// (since). Spec v1.19 client-server-api/#post_matrixclientv3publicrooms
func (s *Service) PublicRooms(ctx context.Context, q PublicRoomsRequest) (PublicRoomsResponse, error) {
	at, backwards, err := parseListToken(q.Since)
	if err != nil {
		return PublicRoomsResponse{}, err
	}
	if q.Limit < 0 {
		return PublicRoomsResponse{}, matrix.InvalidParam("limit must not be negative")
	}
	rooms, err := s.listedRooms(ctx, q)
	if err != nil {
		return PublicRoomsResponse{}, err
	}
	limit := q.Limit
	if limit == 0 || limit > maxPublicRooms {
		limit = maxPublicRooms
	}
	answer := PublicRoomsResponse{Chunk: []RoomSummary{}, TotalRoomCountEstimate: len(rooms)}
	start, found := 0, false
	if q.Since != "" {
		start, found = slices.BinarySearchFunc(rooms, at, compareListed)
	}
	end := 0
	if backwards {
		end = start
		start = max(0, end-limit)
	} else {
		if found {
			start++
		}
		end = min(len(rooms), start+limit)
	}
	answer.Chunk = append(answer.Chunk, rooms[start:end]...)
	if len(answer.Chunk) > 0 && end < len(rooms) {
		answer.NextBatch = listToken('n', rooms[end-1])
	}
	if len(answer.Chunk) > 0 && start > 0 {
		answer.PrevBatch = listToken('p', rooms[start])
	}
	return answer, nil
}

// listedRooms lists what the request's network and filter let through, largest first.
func (s *Service) listedRooms(ctx context.Context, q PublicRoomsRequest) ([]RoomSummary, error) {
	ids, err := s.o.DB.PublishedRooms(ctx, q.ThirdPartyInstanceID, q.IncludeAllNetworks)
	if err != nil {
		return nil, err
	}
	var rooms []RoomSummary
	for _, id := range ids {
		sum, err := s.summary(ctx, id)
		if matrix.ErrorCode(err) == "M_NOT_FOUND" {
			continue
		} else if err != nil {
			return nil, err
		}
		hidden := sum.JoinRule == matrix.JoinRuleInvite || sum.JoinRule == matrix.JoinRulePrivate
		if sum.NumJoinedMembers > 0 && (!hidden || sum.WorldReadable) && q.Filter.allows(&sum) {
			rooms = append(rooms, sum)
		}
	}
	slices.SortFunc(rooms, compareListed)
	return rooms, nil
}

func compareListed(a, b RoomSummary) int {
	return cmp.Or(cmp.Compare(b.NumJoinedMembers, a.NumJoinedMembers), cmp.Compare(a.RoomID, b.RoomID))
}

// allows reports whether a room passes the filter; a nil filter lets all pass.
func (f *PublicRoomsFilter) allows(sum *RoomSummary) bool {
	if f == nil {
		return true
	}
	if f.RoomTypes != nil && !slices.ContainsFunc(f.RoomTypes, func(t *string) bool {
		return t == nil && sum.RoomType == "" || t != nil && *t != "" && *t == sum.RoomType
	}) {
		return false
	}
	term := strings.ToLower(strings.TrimSpace(f.GenericSearchTerm))
	return term == "" || strings.Contains(strings.ToLower(sum.Name), term) ||
		strings.Contains(strings.ToLower(sum.Topic), term) || strings.Contains(strings.ToLower(sum.CanonicalAlias), term)
}

// A list token names the last (n) or first (p) room of a page by what the list is sorted by, so that it stays good while rooms come and go.
func listToken(kind byte, at RoomSummary) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%c%d %s", kind, at.NumJoinedMembers, at.RoomID))
}

func parseListToken(token string) (at RoomSummary, backwards bool, err error) {
	if token == "" {
		return at, false, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil && len(raw) > 0 && (raw[0] == 'n' || raw[0] == 'p') {
		count, room, _ := strings.Cut(string(raw[1:]), " ")
		if at.NumJoinedMembers, err = strconv.Atoi(count); err == nil {
			at.RoomID = matrix.RoomID(room)
			return at, raw[0] == 'p', nil
		}
	}
	return at, false, matrix.InvalidParam("since is not a token of this list")
}

// PublicRoomsAt is PublicRooms with the server parameter: another server's list; our own if server is us.
func (s *Service) PublicRoomsAt(ctx context.Context, server matrix.ServerName, q PublicRoomsRequest) (PublicRoomsResponse, error) {
	if server == "" || server == s.o.ServerName {
		return s.PublicRooms(ctx, q)
	}
	if s.o.Remote == nil {
		return PublicRoomsResponse{}, matrix.Forbidden("this server does not talk to others")
	}
	answer, err := s.o.Remote.PublicRooms(ctx, server, q)
	if err != nil {
		return answer, s.remoteFailed("room list", server, err)
	}
	// Old servers do not know the filter, and a client does not want to see more than it asked for.
	answer.Chunk = slices.DeleteFunc(answer.Chunk, func(sum RoomSummary) bool { return !q.Filter.allows(&sum) })
	if answer.Chunk == nil {
		answer.Chunk = []RoomSummary{}
	}
	return answer, nil
}

// ---- people

// maxMutualRooms is the longest page of mutual rooms.
const maxMutualRooms = 100

// MutualRooms is GET /mutual_rooms: the rooms that both users are in, at most 100 a page. M_INVALID_PARAM if other is the user.
func (s *Service) MutualRooms(ctx context.Context, user, other matrix.UserID, from string) (rooms []matrix.RoomID, next string, err error) {
	if user == other {
		return nil, "", matrix.InvalidParam("you share all your rooms with yourself")
	}
	all, err := s.SharedRooms(ctx, user, other)
	if err != nil {
		return nil, "", err
	}
	rooms = []matrix.RoomID{}
	all = slices.Sorted(slices.Values(all))
	if from != "" {
		at, err := base64.RawURLEncoding.DecodeString(from)
		if err != nil {
			return nil, "", matrix.InvalidParam("from is not a token of this list")
		}
		start, found := slices.BinarySearch(all, matrix.RoomID(at))
		if found {
			start++
		}
		all = all[start:]
	}
	if len(all) > maxMutualRooms {
		all = all[:maxMutualRooms]
		next = base64.RawURLEncoding.EncodeToString([]byte(all[maxMutualRooms-1]))
	}
	return append(rooms, all...), next, nil
}

// FoundUser is a result of SearchUsers.
type FoundUser struct {
	UserID      matrix.UserID `json:"user_id"`
	DisplayName string        `json:"display_name,omitempty"`
	AvatarURL   string        `json:"avatar_url,omitempty"`
}

// SearchUsers is POST /user_directory/search: those who share a room with user or are in a room that anybody may join or read, and everyone of
// this server unless Config.FindColleagues is off, whose ID or profile name has term.
// limited says that there are more than limit; limit 0 means 10, at most 50.
// Spec v1.19 client-server-api/#post_matrixclientv3user_directorysearch
func (s *Service) SearchUsers(ctx context.Context, user matrix.UserID, term string, limit int) (found []FoundUser, limited bool, err error) {
	found = []FoundUser{}
	words := strings.Fields(strings.ToLower(term))
	if limit <= 0 {
		limit = 10
	}
	limit = min(limit, 50)
	if len(words) == 0 {
		return found, false, nil
	}
	people, err := s.o.DB.FindPeople(ctx, storage.PeopleQuery{Searcher: user, Server: s.o.ServerName, Words: words, Everyone: s.o.Config.FindColleagues, Limit: limit + 1})
	if err != nil {
		return nil, false, err
	}
	for _, p := range people {
		found = append(found, FoundUser{UserID: p.UserID, DisplayName: p.DisplayName, AvatarURL: p.AvatarURL})
	}
	if limited = len(found) > limit; limited {
		found = found[:limit]
	}
	return found, limited, nil
}
