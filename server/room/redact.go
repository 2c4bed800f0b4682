package room

import (
	"fmt"
	"slices"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
)

// redactions applies e if it is a redaction, and to e what came before it.
// Spec v1.19 rooms/v11/#handling-redactions
func (u *update) redactions(e *storage.Event) error {
	if u.snap.row.Flags&storage.HasPendingRedactions != 0 && e.Sender().Server() != u.s.o.ServerName {
		if err := u.redactEarlier(e); err != nil {
			return err
		}
	}
	target := e.Redacts()
	if e.Type() != matrix.TypeRedaction || target == "" {
		return nil
	}
	old, err := u.known(target)
	if err != nil {
		return nil // of another room: it is not to be applied
	}
	if old == nil {
		u.add.PendingRedactions = append(u.add.PendingRedactions, e)
		u.setFlags(storage.HasPendingRedactions, 0)
		return nil
	}
	return u.redact(old, e)
}

// redactEarlier applies the redactions that came before their target e.
func (u *update) redactEarlier(e *storage.Event) error {
	nums, err := u.s.o.DB.PendingRedactions(u.ctx, e.ID())
	if err != nil || len(nums) == 0 {
		return err
	}
	u.add.Arrived = append(u.add.Arrived, e.ID())
	redactions, err := u.s.events(u.ctx, nums, u.fresh)
	if err != nil {
		return err
	}
	for _, r := range redactions {
		if err := u.redact(u.fresh.byNum(e.Num), r); err != nil {
			return err
		}
	}
	return nil
}

// redact applies a redaction to its target, if it may.
func (u *update) redact(target, by *storage.Event) error {
	if target.RedactedBy != "" || target.RoomNum != by.RoomNum {
		return nil
	}
	create, err := u.s.stateEvent(u.ctx, u.room.Num, by.Before, matrix.TypeCreate, "", u.fresh)
	if err != nil {
		return err
	}
	power, err := u.s.stateEvent(u.ctx, u.room.Num, by.Before, matrix.TypePowerLevels, "", u.fresh)
	if err != nil {
		return err
	}
	if create == nil || !matrix.MayRedact(by.Event, target.Event, matrix.PowerLevelsOf(create.Event, eventOf(power))) {
		return nil
	}
	redacted := *target
	redacted.Event, redacted.RedactedBy = target.Redact(), by.ID()
	if r, ok := relationOf(target.Event); ok && !target.Hidden() {
		u.add.Unrelated = append(u.add.Unrelated, storage.Relation{Parent: r.EventID, Num: target.Num})
	}
	u.replace(target, &redacted)
	if target.IsState() {
		if err := u.s.decode(u.ctx, &u.snap, u.fresh); err != nil {
			return fmt.Errorf("redact %s: %w", target.ID(), err)
		}
	}
	return nil
}

// replace puts a changed copy in the place of an event, staged or stored.
func (u *update) replace(old, e *storage.Event) {
	swapIn := func(list []*storage.Event) ([]*storage.Event, bool) {
		i := slices.Index(list, old)
		if i < 0 {
			return list, false
		}
		list = slices.Clone(list) // what a failing function did can be taken back
		list[i] = e
		return list, true
	}
	inEvents, inUpdates := false, false
	u.add.Events, inEvents = swapIn(u.add.Events)
	u.add.Updates, inUpdates = swapIn(u.add.Updates)
	u.lives, _ = swapIn(u.lives)
	u.snap.Tip, _ = swapIn(u.snap.Tip)
	for i := range u.add.Members {
		if u.add.Members[i].Event == old {
			u.add.Members[i].Event = e
		}
	}
	if !inEvents && !inUpdates {
		u.stage(e, false)
		return
	}
	u.fresh.put(e)
}
