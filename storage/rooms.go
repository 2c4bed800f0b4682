package storage

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// RoomFlags say how a room stands.
type RoomFlags int64

// The flags of a room.
const (
	// PartialState: we joined with the members left out, and they are still being fetched.
	PartialState RoomFlags = 1 << iota
	// HasMissing: some prev_events of its events are not here, so there is history to backfill.
	HasMissing
	// HasPendingRedactions: a redaction has come before the event that it redacts.
	HasPendingRedactions
	// WasPartial: it has, or had, the flag PartialState, so that there is more to know of it in partial_rooms.
	WasPartial RoomFlags = 1 << 16
	// BeingDeleted: the room is on its way out, and nobody may use it any more.
	BeingDeleted RoomFlags = 1 << 17
	// OpenRoom: anybody may join it, or read it. Its members may be found in the user directory.
	OpenRoom RoomFlags = 1 << 18
	// AsksRetention: the room has, or had, an m.room.retention event.
	AsksRetention RoomFlags = 1 << 19
)

// Room is a room as it is stored.
type Room struct {
	Num     int64
	ID      matrix.RoomID
	Version *matrix.RoomVersion
	// Seq is raised by each append; [Tx.AppendRooms] compares and swaps it.
	Seq int64
	// Pos is the stream position of the newest event of the timeline; 0 if we only know of the room.
	Pos int64
	// Tip are the numbers of the forward extremities, empty if we only know of the room.
	Tip   []int64
	Root  StateRoot // current state
	Depth int64     // the highest in the tip
	Flags RoomFlags
	// Purged says what was purged of the history.
	Purged PurgePoint
	// Generation is raised by each purge. New state nodes carry it, so that the sweep tells them from what it has looked at.
	Generation int64
}

// RoomByID reads a room; ErrNotFound if this server does not know it.
func (db *DB) RoomByID(ctx context.Context, id matrix.RoomID) (Room, error) {
	return db.readRoom(db.Read(ctx), "room_id = ?", string(id))
}

func (db *DB) readRoom(read *gorm.DB, where string, arg any) (Room, error) {
	var r Room
	var id, version string
	var tip, root []byte
	p := &r.Purged
	err := read.Raw("SELECT num, room_id, version, seq, pos, tip, root, depth, flags, purged_depth, purged_num, purged_from, purged_ts, purged_pos, purged_gap, generation FROM rooms WHERE "+where, arg).
		Row().Scan(&r.Num, &id, &version, &r.Seq, &r.Pos, &tip, &root, &r.Depth, &r.Flags, &p.Before.Depth, &p.Before.Num, &p.FromMS, &p.BeforeMS, &p.Pos, &p.Gap, &r.Generation)
	if errors.Is(err, sql.ErrNoRows) {
		return r, ErrNotFound
	}
	if err == nil {
		r.Root, err = ParseStateRoot(root)
	}
	if err != nil {
		return r, fmt.Errorf("read room: %w", err)
	}
	r.ID, r.Version = matrix.RoomID(id), matrix.LookupRoomVersion(version)
	if r.Version == nil {
		return r, fmt.Errorf("room %s has the unknown version %q", id, version)
	}
	for len(tip) > 0 {
		num, n := binary.Uvarint(tip)
		if n <= 0 {
			return r, fmt.Errorf("room %s: damaged tip", id)
		}
		r.Tip, tip = append(r.Tip, int64(num)), tip[n:]
	}
	return r, nil
}

func encodeTip(tip []int64) []byte {
	b := make([]byte, 0, 4*len(tip))
	for _, num := range tip {
		b = binary.AppendUvarint(b, uint64(num))
	}
	return b
}

func (db *DB) roomName(ctx context.Context, num int64) (*roomName, error) {
	if n, ok := db.roomNames.get(num); ok {
		return n, nil
	}
	r, err := db.readRoom(db.Read(ctx), "num = ?", num)
	if err != nil {
		return nil, err
	}
	n := &roomName{r.ID, r.Version}
	db.roomNames.put(num, n, 100)
	return n, nil
}

// RoomIDOf is the ID of the room with that number.
func (db *DB) RoomIDOf(ctx context.Context, num int64) (matrix.RoomID, error) {
	n, err := db.roomName(ctx, num)
	if err != nil {
		return "", err
	}
	return n.id, nil
}

// RoomIDs lists all rooms that this server is or was in, after the one given, in their order; at most limit.
func (db *DB) RoomIDs(ctx context.Context, after matrix.RoomID, limit int) ([]matrix.RoomID, error) {
	var ids []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT room_id FROM rooms WHERE room_id > ? AND pos > 0 ORDER BY room_id LIMIT ?", string(after), limit).Scan(&ids).Error
	return ids, err
}

// RoomIDsWith is RoomIDs for rooms that have any of the flags; 0: all.
func (db *DB) RoomIDsWith(ctx context.Context, flags RoomFlags, after matrix.RoomID, limit int) ([]matrix.RoomID, error) {
	if flags == 0 {
		return db.RoomIDs(ctx, after, limit)
	}
	var ids []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT room_id FROM rooms WHERE room_id > ? AND pos > 0 AND flags & ? <> 0 ORDER BY room_id LIMIT ?", string(after), int64(flags), limit).Scan(&ids).Error
	return ids, err
}

// RoomsChangedSince lists the rooms with events of a later position than pos.
func (db *DB) RoomsChangedSince(ctx context.Context, pos int64) ([]matrix.RoomID, error) {
	var ids []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT room_id FROM rooms WHERE pos > ?", pos).Scan(&ids).Error
	return ids, err
}

// RootAt is the current state of a room as it was at a stream position, the empty state before its first event here.
func (db *DB) RootAt(ctx context.Context, room, pos int64) (StateRoot, error) {
	var root []byte
	err := db.Read(ctx).Raw("SELECT root FROM room_states WHERE room = ? AND pos <= ? ORDER BY pos DESC LIMIT 1", room, pos).Row().Scan(&root)
	if errors.Is(err, sql.ErrNoRows) {
		return StateRoot{}, nil
	}
	if err != nil {
		return StateRoot{}, fmt.Errorf("read state of room %d at %d: %w", room, pos, err)
	}
	return ParseStateRoot(root)
}

// FirstRoot is the first state of a room, as this server knows it, that has a member.
func (db *DB) FirstRoot(ctx context.Context, room int64) (StateRoot, error) {
	rows, err := db.Read(ctx).Raw("SELECT root FROM room_states WHERE room = ? ORDER BY pos LIMIT 5", room).Rows()
	if err != nil {
		return StateRoot{}, fmt.Errorf("read first state of room %d: %w", room, err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return StateRoot{}, err
		}
		root, err := ParseStateRoot(b)
		if err != nil || root.Members != (nodeHash{}) {
			return root, err
		}
	}
	return StateRoot{}, rows.Err()
}

// Membership is how a user stands to a room.
type Membership struct {
	Room       matrix.RoomID
	RoomNum    int64
	User       matrix.UserID
	Membership string // matrix.Join and so on
	// Num is the number of the member event.
	Num int64
	// Pos is the stream position at which the membership became so; a change of name or avatar does not count as one.
	Pos       int64
	Forgotten bool
	// Stripped is the stripped state that came with an invite or a knock into a room that this server is not in, a
	// JSON array; else nil.
	Stripped json.RawMessage
}

const membershipColumns = "r.room_id, m.room, m.user_id, m.membership, m.num, m.pos, m.forgotten, m.stripped FROM memberships m JOIN rooms r ON r.num = m.room "

func (db *DB) queryMemberships(ctx context.Context, where string, args ...any) ([]Membership, error) {
	rows, err := db.Read(ctx).Raw("SELECT "+membershipColumns+where, args...).Rows()
	if err != nil {
		return nil, fmt.Errorf("read memberships: %w", err)
	}
	defer rows.Close()
	var all []Membership
	for rows.Next() {
		var m Membership
		var room, user string
		var stripped []byte
		if err := rows.Scan(&room, &m.RoomNum, &user, &m.Membership, &m.Num, &m.Pos, &m.Forgotten, &stripped); err != nil {
			return nil, fmt.Errorf("read memberships: %w", err)
		}
		m.Room, m.User, m.Stripped = matrix.RoomID(room), matrix.UserID(user), stripped
		all = append(all, m)
	}
	return all, rows.Err()
}

// MembershipsOf lists the memberships of a user in all rooms that this server knows, forgotten ones included.
func (db *DB) MembershipsOf(ctx context.Context, user matrix.UserID) ([]Membership, error) {
	return db.queryMemberships(ctx, "WHERE m.user_id = ?", string(user))
}

// Membership reads how a user stands to a room; ErrNotFound if in no way.
func (db *DB) Membership(ctx context.Context, room int64, user matrix.UserID) (Membership, error) {
	all, err := db.queryMemberships(ctx, "WHERE m.room = ? AND m.server = ? AND m.user_id = ?", room, string(user.Server()), string(user))
	if err == nil && len(all) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Membership{}, err
	}
	return all[0], nil
}

// RoomMembers lists the members of a room with one membership; "" means all. With a server, only its users.
func (db *DB) RoomMembers(ctx context.Context, room int64, server matrix.ServerName, membership string) ([]Membership, error) {
	where, args := "WHERE m.room = ?", []any{room}
	if server != "" {
		where, args = where+" AND m.server = ?", append(args, string(server))
	}
	if membership != "" {
		where, args = where+" AND m.membership = ?", append(args, membership)
	}
	return db.queryMemberships(ctx, where, args...)
}

// MemberCount counts the members of one server with one membership.
type MemberCount struct {
	Server     matrix.ServerName
	Membership string
	Count      int
}

// MemberCounts counts a room's members.
func (db *DB) MemberCounts(ctx context.Context, room int64) ([]MemberCount, error) {
	var counts []MemberCount
	err := db.Read(ctx).Raw("SELECT server, membership, COUNT(*) AS count FROM memberships WHERE room = ? GROUP BY server, membership", room).Scan(&counts).Error
	return counts, err
}

// RoomsOfServer lists the rooms in which users of a server are joined.
func (db *DB) RoomsOfServer(ctx context.Context, server matrix.ServerName) ([]matrix.RoomID, error) {
	var ids []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT r.room_id FROM rooms r WHERE EXISTS (SELECT 1 FROM memberships m WHERE m.room = r.num AND m.server = ? AND m.membership = 'join')", string(server)).Scan(&ids).Error
	return ids, err
}

// UsersSharing lists those who are joined to a room in which user is joined, user included, or may be, as far as is known of a partial room. With a
// server, only its users.
func (db *DB) UsersSharing(ctx context.Context, user matrix.UserID, server matrix.ServerName) ([]matrix.UserID, error) {
	query := "SELECT DISTINCT b.user_id FROM " + roomsOfUser + " a JOIN memberships b ON b.room = a.room WHERE b.membership = 'join'"
	args := []any{string(user), string(user.Server()), string(user)}
	if server != "" {
		query, args = query+" AND b.server = ?", append(args, string(server))
	}
	var users []matrix.UserID
	err := db.Read(ctx).Raw(query, args...).Scan(&users).Error
	return users, err
}

// SetForgotten marks rooms as forgotten by their user.
func (tx *Tx) SetForgotten(room int64, user matrix.UserID, forgotten bool) error {
	value := 0
	if forgotten {
		value = 1
	}
	return tx.Exec("UPDATE memberships SET forgotten = ? WHERE room = ? AND server = ? AND user_id = ?", value, room, string(user.Server()), string(user)).Error
}

// PendingRedactions lists the redactions that came before the event they redact.
func (db *DB) PendingRedactions(ctx context.Context, target matrix.EventID) ([]int64, error) {
	var nums []int64
	err := db.Read(ctx).Raw("SELECT num FROM pending_redactions WHERE target = ? ORDER BY num", string(target)).Scan(&nums).Error
	return nums, err
}

// MissingPrevs lists the events that are missing before a place in a room's history, the latest first; at most limit.
func (db *DB) MissingPrevs(ctx context.Context, room, depth int64, limit int) ([]MissingPrev, error) {
	var found []MissingPrev
	err := db.Read(ctx).Raw("SELECT event_id AS id, num, depth FROM missing_prev WHERE room = ? AND depth <= ? ORDER BY depth DESC LIMIT ?", room, depth, limit).Scan(&found).Error
	return found, err
}

// Relations lists what relates to events of a room, as far as it is shown to clients.
func (db *DB) Relations(ctx context.Context, room int64, parents []matrix.EventID) ([]Relation, error) {
	var all []Relation
	for chunk := range slices.Chunk(parents, maxIn) {
		var some []Relation
		err := db.Read(ctx).Raw("SELECT parent, num, rel_type, type, sender, depth FROM relations WHERE room = ? AND parent IN ?", room, padded(chunk)).Scan(&some).Error
		if err != nil {
			return nil, fmt.Errorf("read relations: %w", err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// Thread is a thread by its root and the number of its newest reply.
type Thread struct {
	Root   matrix.EventID
	Newest int64
}

// Threads lists the threads of a room whose newest reply has a lower number than before, the newest first.
func (db *DB) Threads(ctx context.Context, room, before int64, limit int) ([]Thread, error) {
	var threads []Thread
	err := db.Read(ctx).Raw(`SELECT parent AS root, MAX(num) AS newest FROM relations WHERE room = ? AND rel_type = 'm.thread'
		GROUP BY parent HAVING MAX(num) < ? ORDER BY MAX(num) DESC LIMIT ?`, room, before, limit).Scan(&threads).Error
	return threads, err
}

// RoomSize is how much a room takes up.
type RoomSize struct {
	Events, EventBytes int64 // all events, outliers included
	Nodes, StateBytes  int64 // of the states of all times
}

// RoomSize measures a room; the bytes are those of events' JSON and of nodes with their keys, without what the database adds. It reads all of them.
func (db *DB) RoomSize(ctx context.Context, room matrix.RoomID) (size RoomSize, err error) {
	r, err := db.RoomByID(ctx, room)
	if err != nil {
		return size, err
	}
	err = db.Read(ctx).Raw("SELECT COUNT(*), COALESCE(SUM(LENGTH(json)), 0) FROM events WHERE room = ?", r.Num).Row().Scan(&size.Events, &size.EventBytes)
	if err == nil {
		err = db.Read(ctx).Raw("SELECT COUNT(*), COALESCE(SUM(LENGTH(node) + 24), 0) FROM state_nodes WHERE room = ?", r.Num).Row().Scan(&size.Nodes, &size.StateBytes)
	}
	return size, err
}
