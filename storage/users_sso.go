package storage

import (
	"context"
	"errors"

	"parley.im/parley/server/matrix"
)

// ExternalID is a person as a sign-in provider knows them. The zero value is nobody.
type ExternalID struct {
	Issuer  string
	Subject string
}

// ErrLinked is returned where an external ID has an account already, or the account a person of this issuer.
var ErrLinked = errors.New("external ID is linked already")

// UserOfExternalID finds whose account it is, deactivated or not; ErrNotFound if nobody's.
func (db *DB) UserOfExternalID(ctx context.Context, id ExternalID) (user matrix.UserID, err error) {
	err = db.Read(ctx).Raw("SELECT user_id FROM external_ids WHERE issuer = ? AND subject = ?", id.Issuer, id.Subject).Row().Scan(&user)
	return user, orNotFound(err)
}

// LinkExternalID gives an account that exists to the person. ErrLinked if the person or the account has a link to this issuer
// already, ErrNotFound if there is no such account or it is deactivated.
func (db *DB) LinkExternalID(ctx context.Context, user matrix.UserID, id ExternalID, nowMS int64) error {
	return db.Write(ctx, func(tx *Tx) error {
		var active bool
		err := tx.Raw("SELECT NOT deactivated FROM users WHERE user_id = ?", user).Row().Scan(&active)
		switch {
		case err != nil:
			return orNotFound(err)
		case !active:
			return ErrNotFound
		}
		return tx.linkExternalID(user, id, nowMS)
	})
}

func (tx *Tx) linkExternalID(user matrix.UserID, id ExternalID, nowMS int64) error {
	n, err := tx.affect("INSERT INTO external_ids (issuer, subject, user_id, created_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
		id.Issuer, id.Subject, user, nowMS)
	if err == nil && n == 0 {
		err = ErrLinked
	}
	return err
}

// Authenticators are the ways in which a user can prove who they are.
type Authenticators struct {
	Password bool
	Issuers  []string // of the sign-in providers that know the user
}

// Authenticators of a user; none if there is no such account.
func (db *DB) Authenticators(ctx context.Context, user matrix.UserID) (a Authenticators, err error) {
	rows, err := db.Read(ctx).Raw(`SELECT u.password <> '', x.issuer FROM users u LEFT JOIN external_ids x ON x.user_id = u.user_id
		WHERE u.user_id = ?`, user).Rows()
	if err != nil {
		return a, err
	}
	defer rows.Close()
	for rows.Next() {
		var issuer *string
		if err := rows.Scan(&a.Password, &issuer); err != nil {
			return a, err
		}
		if issuer != nil {
			a.Issuers = append(a.Issuers, *issuer)
		}
	}
	return a, rows.Err()
}
