package storage

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"parley.im/parley/server/matrix"
)

// stageBatch is how many rows one write of Stage… writes: it holds up all other writers for as long, a few milliseconds.
const stageBatch = 1000

// StageNodes stores the nodes of a state before any row names it, in writes of bounded size. Nodes are addressed by what they hold, so
// those that nobody comes to need do no harm and are found again.
func (db *DB) StageNodes(ctx context.Context, room int64, nodes *StateNodes) error {
	order := make([]int, len(nodes.order)) // by their keys, so that neighbours are written together
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return bytes.Compare(nodes.order[a][:], nodes.order[b][:]) })
	for chunk := range slices.Chunk(order, stageBatch) {
		var part StateNodes
		for _, i := range chunk {
			part.order, part.bytes = append(part.order, nodes.order[i]), append(part.bytes, nodes.bytes[i])
		}
		if err := db.Write(ctx, func(tx *Tx) error {
			var generation int64
			if err := tx.Raw("SELECT generation FROM rooms WHERE num = ?", room).Row().Scan(&generation); err != nil {
				return err
			}
			return tx.writeNodes(room, generation, &part)
		}); err != nil {
			return fmt.Errorf("stage nodes of room %d: %w", room, err)
		}
	}
	return nil
}

// StageMembers makes the rows of a room's members say what they shall say once this server has entered the room, in writes of bounded size. It is
// for users of other servers: what users of this server see changes with the write by which the room is entered. tip is the room's; the error is
// ErrMoved if it is not any more, so that nothing is written over what was entered by another process. Rows that are left from
// an attempt that was not finished are of no more use to anybody than those that are left when this server leaves a room, and the next
// attempt must write over them.
func (db *DB) StageMembers(ctx context.Context, room int64, tip []int64, members []MemberChange) error {
	as := encodeTip(tip)
	members = slices.Clone(members) // in the order of an index; the other one has few servers
	slices.SortFunc(members, func(a, b MemberChange) int { return strings.Compare(string(a.User), string(b.User)) })
	for chunk := range slices.Chunk(members, stageBatch) {
		err := db.Write(ctx, func(tx *Tx) error {
			locked := tx.Exec("UPDATE rooms SET seq = seq WHERE num = ? AND tip = ?", room, as)
			if locked.Error != nil {
				return locked.Error
			}
			if locked.RowsAffected == 0 {
				return ErrMoved
			}
			pos, err := tx.Next(1)
			if err != nil {
				return err
			}
			for i := range chunk {
				chunk[i].Pos = pos
			}
			return tx.writeMembers([]*RoomAppend{{Room: Room{Num: room}, Members: chunk}})
		})
		if err != nil {
			return fmt.Errorf("stage members of room %d: %w", room, err)
		}
	}
	return nil
}

// MemberRow is a membership without what is the same for a whole room.
type MemberRow struct {
	User       matrix.UserID
	Membership string
	Num        int64
}

// MemberRows calls fn for each row of a room's members, in no particular order. fn must not read from the database.
func (db *DB) MemberRows(ctx context.Context, room int64, fn func(MemberRow)) error {
	rows, err := db.Read(ctx).Raw("SELECT user_id, membership, num FROM memberships WHERE room = ?", room).Rows()
	if err != nil {
		return fmt.Errorf("read members: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var m MemberRow
		if err := rows.Scan(&m.User, &m.Membership, &m.Num); err != nil {
			return fmt.Errorf("read members: %w", err)
		}
		fn(m)
	}
	return rows.Err()
}
