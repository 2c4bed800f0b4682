package storage_test

import (
	"errors"
	"slices"
	"testing"

	"parley.im/parley/server/matrix"
	"parley.im/parley/storage"
	"parley.im/parley/storage/storagetest"
)

func TestExternalIDsBelongToOneAccount(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		acme := func(subject string) storage.ExternalID {
			return storage.ExternalID{Issuer: "https://acme.example", Subject: subject}
		}
		create := func(user matrix.UserID, id storage.ExternalID) error {
			return db.CreateUser(ctx, storage.NewUser{UserID: user, External: id, NowMS: 1})
		}
		is := func(what string, got, want error) {
			t.Helper()
			if !errors.Is(got, want) || want == nil && got != nil {
				t.Errorf("%s: got %v, want %v", what, got, want)
			}
		}
		is("a new account", create("@anna:test", acme("1")), nil)
		is("the name is taken", create("@anna:test", acme("2")), storage.ErrTaken)
		is("the person has an account", create("@anna2:test", acme("1")), storage.ErrLinked)
		if _, err := db.Account(ctx, "@anna2:test"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("half of an account was made: %v", err)
		}
		is("an account without one", create("@bob:test", storage.ExternalID{}), nil)
		is("another without one", create("@carl:test", storage.ExternalID{}), nil)
		is("link", db.LinkExternalID(ctx, "@bob:test", acme("3"), 1), nil)
		is("the account has a person", db.LinkExternalID(ctx, "@bob:test", acme("4"), 1), storage.ErrLinked)
		is("the person has an account", db.LinkExternalID(ctx, "@carl:test", acme("3"), 1), storage.ErrLinked)
		is("no account", db.LinkExternalID(ctx, "@nobody:test", acme("5"), 1), storage.ErrNotFound)
		is("a second issuer", db.LinkExternalID(ctx, "@bob:test", storage.ExternalID{Issuer: "https://other.example", Subject: "3"}, 1), nil)
		is("deactivate", db.DeactivateUser(ctx, "@carl:test", false), nil)
		is("a deactivated account", db.LinkExternalID(ctx, "@carl:test", acme("6"), 1), storage.ErrNotFound)
		is("deactivate", db.DeactivateUser(ctx, "@anna:test", false), nil)
		if user, err := db.UserOfExternalID(ctx, acme("1")); err != nil || user != "@anna:test" {
			t.Errorf("after the deactivation: %s, %v", user, err)
		}
		if _, err := db.UserOfExternalID(ctx, acme("9")); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("nobody: %v", err)
		}
		has, err := db.Authenticators(ctx, "@bob:test")
		slices.Sort(has.Issuers)
		if err != nil || has.Password || !slices.Equal(has.Issuers, []string{"https://acme.example", "https://other.example"}) {
			t.Errorf("got %+v, %v", has, err)
		}
		if has, err := db.Authenticators(ctx, "@nobody:test"); err != nil || has.Password || has.Issuers != nil {
			t.Errorf("got %+v, %v", has, err)
		}
	})
}
