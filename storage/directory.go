package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gorm.io/gorm"

	"parley.im/parley/server/matrix"
)

// ErrTaken says that an alias exists already.
var ErrTaken = errors.New("the alias is taken")

// Alias is a name of a room on this server.
type Alias struct {
	Alias     matrix.RoomAlias
	RoomID    matrix.RoomID
	Creator   matrix.UserID
	CreatedMS int64
}

// CreateAlias adds an alias; the error is ErrTaken if there is one of that name, whatever it points to.
func (db *DB) CreateAlias(ctx context.Context, a Alias) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.CreateAlias(a) })
}

// CreateAlias is [DB.CreateAlias] within a write, for rooms that are created with their alias.
func (tx *Tx) CreateAlias(a Alias) error {
	r := tx.Exec("INSERT INTO aliases (alias, room_id, creator, created_ms) VALUES (?, ?, ?, ?) ON CONFLICT (alias) DO NOTHING",
		a.Alias, a.RoomID, a.Creator, a.CreatedMS)
	if r.Error != nil {
		return fmt.Errorf("create alias: %w", r.Error)
	}
	if r.RowsAffected == 0 {
		return ErrTaken
	}
	return nil
}

// DeleteAlias removes an alias; the error is ErrNotFound if there is none.
func (db *DB) DeleteAlias(ctx context.Context, alias matrix.RoomAlias) error {
	return db.Write(ctx, func(tx *Tx) error {
		r := tx.Exec("DELETE FROM aliases WHERE alias = ?", alias)
		if r.Error == nil && r.RowsAffected == 0 {
			return ErrNotFound
		}
		return r.Error
	})
}

// MoveAliases points all aliases of one room to another, as a room upgrade does.
func (tx *Tx) MoveAliases(from, to matrix.RoomID) error {
	return tx.Exec("UPDATE aliases SET room_id = ? WHERE room_id = ?", to, from).Error
}

// Alias looks an alias up; the error is ErrNotFound if there is none.
func (db *DB) Alias(ctx context.Context, alias matrix.RoomAlias) (Alias, error) {
	var a Alias
	err := db.Read(ctx).Raw("SELECT alias, room_id, creator, created_ms FROM aliases WHERE alias = ?", alias).Take(&a).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		err = ErrNotFound
	}
	return a, err
}

// RoomAliases lists the aliases of a room on this server, in order.
func (db *DB) RoomAliases(ctx context.Context, room matrix.RoomID) ([]matrix.RoomAlias, error) {
	var all []matrix.RoomAlias
	err := db.Read(ctx).Raw("SELECT alias FROM aliases WHERE room_id = ? ORDER BY alias", room).Scan(&all).Error
	return all, err
}

// SetPublished puts a room into a public list or takes it out. network is "" for the server's own list.
func (db *DB) SetPublished(ctx context.Context, network string, room matrix.RoomID, published bool) error {
	return db.Write(ctx, func(tx *Tx) error { return tx.SetPublished(network, room, published) })
}

// SetPublished is [DB.SetPublished] within a write.
func (tx *Tx) SetPublished(network string, room matrix.RoomID, published bool) error {
	if published {
		return tx.Exec("INSERT INTO published_rooms (network, room_id) VALUES (?, ?) ON CONFLICT (network, room_id) DO NOTHING", network, room).Error
	}
	return tx.Exec("DELETE FROM published_rooms WHERE network = ? AND room_id = ?", network, room).Error
}

// Published reports whether a room is in the server's own public list.
func (db *DB) Published(ctx context.Context, room matrix.RoomID) (bool, error) {
	var n int
	err := db.Read(ctx).Raw("SELECT COUNT(*) FROM published_rooms WHERE network = '' AND room_id = ?", room).Row().Scan(&n)
	return n > 0, err
}

// PublishedRooms lists the rooms of a public list; with all, those of every network, each once.
func (db *DB) PublishedRooms(ctx context.Context, network string, all bool) ([]matrix.RoomID, error) {
	var rooms []matrix.RoomID
	err := db.Read(ctx).Raw("SELECT DISTINCT room_id FROM published_rooms WHERE network = ? OR ? ORDER BY room_id", network, all).Scan(&rooms).Error
	return rooms, err
}

// PeopleQuery looks for people in the user directory.
type PeopleQuery struct {
	Searcher matrix.UserID
	Server   matrix.ServerName // this one
	Words    []string          // in lower case; all must occur in the ID or the name
	Everyone bool              // of this server, not only those whom the searcher could meet in a room
	Limit    int
}

// Person is an entry of the user directory.
type Person struct {
	UserID                 matrix.UserID
	DisplayName, AvatarURL string
}

// maxStrangers is how many users of other servers one search looks at.
const maxStrangers = 5000

// visibleRooms are the rooms whose members the searcher may find: the searcher's own, those that are open, and those in the public list.
var visibleRooms = fmt.Sprintf("(SELECT room FROM memberships WHERE user_id = ? AND membership = 'join' "+
	"UNION SELECT num FROM rooms WHERE (flags & %d) <> 0 "+
	"UNION SELECT r.num FROM published_rooms p JOIN rooms r ON r.room_id = p.room_id WHERE p.network = '')", OpenRoom)

// FindPeople searches the people in the rooms of the searcher and in open and public rooms, and everyone of this server if the query says
// so, the searcher excepted: those of this server by their profiles, whose names begin with the first word first, then others by what
// their newest member event in one of these rooms says. There is at least one word.
func (db *DB) FindPeople(ctx context.Context, q PeopleQuery) ([]Person, error) {
	query := "SELECT p.user_id, COALESCE(p.displayname, ''), COALESCE(p.avatar_url, '') FROM profiles p JOIN users u ON u.user_id = p.user_id " +
		"WHERE NOT u.deactivated AND p.user_id <> ? AND (? OR EXISTS (SELECT 1 FROM memberships m WHERE m.user_id = p.user_id AND m.membership = 'join' AND m.room IN " + visibleRooms + "))"
	args := []any{string(q.Searcher), q.Everyone, string(q.Searcher)}
	for _, w := range q.Words {
		query += ` AND (p.name_key LIKE ? ESCAPE '\' OR LOWER(p.user_id) LIKE ? ESCAPE '\')`
		like := "%" + likeEscape(w) + "%"
		args = append(args, like, like)
	}
	first := likeEscape(q.Words[0]) + "%"
	query += ` ORDER BY CASE WHEN p.name_key LIKE ? ESCAPE '\' OR LOWER(p.user_id) LIKE ? ESCAPE '\' THEN 0 ELSE 1 END, p.user_id LIMIT ?`
	rows, err := db.Read(ctx).Raw(query, append(args, first, "@"+first, q.Limit)...).Rows()
	if err != nil {
		return nil, fmt.Errorf("search local users: %w", err)
	}
	defer rows.Close()
	var found []Person
	for rows.Next() {
		var id string
		var name, avatar []byte
		if err := rows.Scan(&id, &name, &avatar); err != nil {
			return nil, fmt.Errorf("search local users: %w", err)
		}
		found = append(found, Person{matrix.UserID(id), string(name), string(avatar)})
	}
	if err := rows.Err(); err != nil || len(found) >= q.Limit {
		return found, err
	}
	strangers, err := db.findStrangers(ctx, q, q.Limit-len(found))
	return append(found, strangers...), err
}

func (db *DB) findStrangers(ctx context.Context, q PeopleQuery, limit int) ([]Person, error) {
	rows, err := db.Read(ctx).Raw("SELECT m.user_id, e.json FROM (SELECT user_id, MAX(num) AS num FROM memberships "+
		"WHERE server <> ? AND membership = 'join' AND room IN "+visibleRooms+" GROUP BY user_id ORDER BY user_id LIMIT ?) m "+
		"JOIN events e ON e.num = m.num ORDER BY m.user_id", string(q.Server), string(q.Searcher), maxStrangers).Rows()
	if err != nil {
		return nil, fmt.Errorf("search users of other servers: %w", err)
	}
	defer rows.Close()
	var found []Person
	for rows.Next() && len(found) < limit {
		var user string
		var raw []byte
		if err := rows.Scan(&user, &raw); err != nil {
			return nil, fmt.Errorf("search users of other servers: %w", err)
		}
		var event struct {
			Content map[string]any `json:"content"`
		}
		_ = json.Unmarshal(raw, &event) // an event's content is always an object
		p := Person{UserID: matrix.UserID(user)}
		p.DisplayName, _ = event.Content["displayname"].(string)
		p.AvatarURL, _ = event.Content["avatar_url"].(string)
		text := strings.ToLower(user + " " + p.DisplayName)
		if !slices.ContainsFunc(q.Words, func(w string) bool { return !strings.Contains(text, w) }) {
			found = append(found, p)
		}
	}
	return found, rows.Err()
}
