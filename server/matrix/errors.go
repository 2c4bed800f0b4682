package matrix

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Error is a failure that a client or another server may see. It is made where the reason is known and written by
// api/errors.go and its counterpart in federation. Spec v1.19 client-server-api/#standard-error-response
type Error struct {
	Code    string         // "M_FORBIDDEN"
	Message string         // a sentence for people that says what was wrong
	Status  int            // HTTP status
	Extra   map[string]any // further fields of the answer, for example "soft_logout"; nil for none

	// RetryAfter is sent as retry_after_ms and as the Retry-After header if it is not 0.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Is makes errors.Is(err, &Error{Code: "M_NOT_FOUND"}) true for every error of that code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Message == "" || t.Message == e.Message)
}

// MarshalJSON writes the body of the error's answer.
func (e *Error) MarshalJSON() ([]byte, error) {
	body := make(map[string]any, len(e.Extra)+3)
	for k, v := range e.Extra {
		body[k] = v
	}
	body["errcode"], body["error"] = e.Code, e.Message
	if e.RetryAfter > 0 {
		body["retry_after_ms"] = e.RetryAfter.Milliseconds()
	}
	return json.Marshal(body)
}

// With returns a copy of the error with a further field in its answer.
func (e *Error) With(key string, value any) *Error {
	c := *e
	c.Extra = make(map[string]any, len(e.Extra)+1)
	for k, v := range e.Extra {
		c.Extra[k] = v
	}
	c.Extra[key] = value
	return &c
}

// WithStatus returns a copy of the error with another HTTP status.
func (e *Error) WithStatus(status int) *Error {
	c := *e
	c.Status = status
	return &c
}

// ErrorCode is the code of the *Error in err's chain, "" if there is none.
func ErrorCode(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// NewError makes an error with a code that has no constructor of its own.
func NewError(status int, code, format string, args ...any) *Error {
	message := format
	if len(args) > 0 {
		message = fmt.Sprintf(format, args...)
	}
	return &Error{Code: code, Message: message, Status: status}
}

// Forbidden (M_FORBIDDEN, 403) is the caller may not do this.
func Forbidden(format string, args ...any) *Error {
	return NewError(403, "M_FORBIDDEN", format, args...)
}

// NotFound (M_NOT_FOUND, 404) is there is no such thing.
func NotFound(format string, args ...any) *Error {
	return NewError(404, "M_NOT_FOUND", format, args...)
}

// BadJSON (M_BAD_JSON, 400) is JSON of the wrong shape: a missing key, a wrong type.
func BadJSON(format string, args ...any) *Error { return NewError(400, "M_BAD_JSON", format, args...) }

// NotJSON (M_NOT_JSON, 400) is a body that is not JSON at all.
func NotJSON(format string, args ...any) *Error { return NewError(400, "M_NOT_JSON", format, args...) }

// InvalidParam (M_INVALID_PARAM, 400) is a parameter with a wrong value.
func InvalidParam(format string, args ...any) *Error {
	return NewError(400, "M_INVALID_PARAM", format, args...)
}

// MissingParam (M_MISSING_PARAM, 400) is a parameter that is missing.
func MissingParam(format string, args ...any) *Error {
	return NewError(400, "M_MISSING_PARAM", format, args...)
}

// TooLarge (M_TOO_LARGE, 413) is a request or event above a limit.
func TooLarge(format string, args ...any) *Error {
	return NewError(413, "M_TOO_LARGE", format, args...)
}

// Unrecognized (M_UNRECOGNIZED, 404) is an unknown endpoint; with status 405 a known one with another method.
func Unrecognized(format string, args ...any) *Error {
	return NewError(404, "M_UNRECOGNIZED", format, args...)
}

// MissingToken (M_MISSING_TOKEN, 401) is a request without an access token.
func MissingToken(format string, args ...any) *Error {
	return NewError(401, "M_MISSING_TOKEN", format, args...)
}

// UserInUse (M_USER_IN_USE, 400) is a user ID that is taken.
func UserInUse(format string, args ...any) *Error {
	return NewError(400, "M_USER_IN_USE", format, args...)
}

// InvalidUsername (M_INVALID_USERNAME, 400) is a user name that is not valid.
func InvalidUsername(format string, args ...any) *Error {
	return NewError(400, "M_INVALID_USERNAME", format, args...)
}

// WeakPassword (M_WEAK_PASSWORD, 400) is a password that the policy refuses.
func WeakPassword(format string, args ...any) *Error {
	return NewError(400, "M_WEAK_PASSWORD", format, args...)
}

// RoomInUse (M_ROOM_IN_USE, 400) is a room alias that is taken.
func RoomInUse(format string, args ...any) *Error {
	return NewError(400, "M_ROOM_IN_USE", format, args...)
}

// InvalidRoomState (M_INVALID_ROOM_STATE, 400) is a room whose initial state is not allowed.
func InvalidRoomState(format string, args ...any) *Error {
	return NewError(400, "M_INVALID_ROOM_STATE", format, args...)
}

// BadState (M_BAD_STATE, 400) is a change that the state of the room does not permit.
func BadState(format string, args ...any) *Error {
	return NewError(400, "M_BAD_STATE", format, args...)
}

// UnsupportedRoomVersion (M_UNSUPPORTED_ROOM_VERSION, 400) is a room version that this server does not know.
func UnsupportedRoomVersion(format string, args ...any) *Error {
	return NewError(400, "M_UNSUPPORTED_ROOM_VERSION", format, args...)
}

// Exclusive (M_EXCLUSIVE, 400) is an ID in the exclusive namespace of an application service.
func Exclusive(format string, args ...any) *Error {
	return NewError(400, "M_EXCLUSIVE", format, args...)
}

// GuestAccessForbidden (M_GUEST_ACCESS_FORBIDDEN, 403) is what guests may not do.
func GuestAccessForbidden(format string, args ...any) *Error {
	return NewError(403, "M_GUEST_ACCESS_FORBIDDEN", format, args...)
}

// UnableToAuthoriseJoin (M_UNABLE_TO_AUTHORISE_JOIN, 400) is a restricted join whose conditions this server cannot check.
func UnableToAuthoriseJoin(format string, args ...any) *Error {
	return NewError(400, "M_UNABLE_TO_AUTHORISE_JOIN", format, args...)
}

// UnableToGrantJoin (M_UNABLE_TO_GRANT_JOIN, 400) is a restricted join that nobody on this server may grant.
func UnableToGrantJoin(format string, args ...any) *Error {
	return NewError(400, "M_UNABLE_TO_GRANT_JOIN", format, args...)
}

// UserDeactivated (M_USER_DEACTIVATED, 403) is a login to a deactivated account.
func UserDeactivated(format string, args ...any) *Error {
	return NewError(403, "M_USER_DEACTIVATED", format, args...)
}

// UserSuspended (M_USER_SUSPENDED, 403) is what a suspended account may not do.
func UserSuspended(format string, args ...any) *Error {
	return NewError(403, "M_USER_SUSPENDED", format, args...)
}

// NotYetUploaded (M_NOT_YET_UPLOADED, 504) is media whose ID was given out, but that has not been uploaded in time.
func NotYetUploaded(format string, args ...any) *Error {
	return NewError(504, "M_NOT_YET_UPLOADED", format, args...)
}

// CannotOverwriteMedia (M_CANNOT_OVERWRITE_MEDIA, 409) is an upload to a media ID that has content already.
func CannotOverwriteMedia(format string, args ...any) *Error {
	return NewError(409, "M_CANNOT_OVERWRITE_MEDIA", format, args...)
}

// Unauthorized (M_UNAUTHORIZED, 401) is a request whose signature or authentication is not valid.
func Unauthorized(format string, args ...any) *Error {
	return NewError(401, "M_UNAUTHORIZED", format, args...)
}

// ThreePIDInUse (M_THREEPID_IN_USE, 400) is a third-party ID that belongs to somebody.
func ThreePIDInUse(format string, args ...any) *Error {
	return NewError(400, "M_THREEPID_IN_USE", format, args...)
}

// ThreePIDNotFound (M_THREEPID_NOT_FOUND, 400) is a third-party ID that nobody has.
func ThreePIDNotFound(format string, args ...any) *Error {
	return NewError(400, "M_THREEPID_NOT_FOUND", format, args...)
}

// ThreePIDDenied (M_THREEPID_DENIED, 403) is a third-party ID that the policy refuses.
func ThreePIDDenied(format string, args ...any) *Error {
	return NewError(403, "M_THREEPID_DENIED", format, args...)
}

// ThreePIDAuthFailed (M_THREEPID_AUTH_FAILED, 400) is a third-party ID that was not validated.
func ThreePIDAuthFailed(format string, args ...any) *Error {
	return NewError(400, "M_THREEPID_AUTH_FAILED", format, args...)
}

// ServerNotTrusted (M_SERVER_NOT_TRUSTED, 400) is a server that this one does not trust.
func ServerNotTrusted(format string, args ...any) *Error {
	return NewError(400, "M_SERVER_NOT_TRUSTED", format, args...)
}

// CaptchaNeeded (M_CAPTCHA_NEEDED, 401) is a captcha that is missing.
func CaptchaNeeded(format string, args ...any) *Error {
	return NewError(401, "M_CAPTCHA_NEEDED", format, args...)
}

// CaptchaInvalid (M_CAPTCHA_INVALID, 401) is a captcha that was not solved.
func CaptchaInvalid(format string, args ...any) *Error {
	return NewError(401, "M_CAPTCHA_INVALID", format, args...)
}

// ResourceLimitExceeded (M_RESOURCE_LIMIT_EXCEEDED, 403) is a limit that the administrator has set on the whole server.
func ResourceLimitExceeded(format string, args ...any) *Error {
	return NewError(403, "M_RESOURCE_LIMIT_EXCEEDED", format, args...)
}

// CannotLeaveServerNoticeRoom (M_CANNOT_LEAVE_SERVER_NOTICE_ROOM, 403) is leaving a server notice room.
func CannotLeaveServerNoticeRoom(format string, args ...any) *Error {
	return NewError(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", format, args...)
}

// ConnectionFailed (M_CONNECTION_FAILED, 400) is a server that did not answer.
func ConnectionFailed(format string, args ...any) *Error {
	return NewError(400, "M_CONNECTION_FAILED", format, args...)
}

// ConnectionTimeout (M_CONNECTION_TIMEOUT, 504) is a server that did not answer in time.
func ConnectionTimeout(format string, args ...any) *Error {
	return NewError(504, "M_CONNECTION_TIMEOUT", format, args...)
}

// DuplicateAnnotation (M_DUPLICATE_ANNOTATION, 400) is a reaction that its sender has made already.
func DuplicateAnnotation(format string, args ...any) *Error {
	return NewError(400, "M_DUPLICATE_ANNOTATION", format, args...)
}

// KeyTooLarge (M_KEY_TOO_LARGE, 400) is a profile field whose name is longer than 255 bytes.
func KeyTooLarge(format string, args ...any) *Error {
	return NewError(400, "M_KEY_TOO_LARGE", format, args...)
}

// ProfileTooLarge (M_PROFILE_TOO_LARGE, 400) is a profile above 64 KiB.
func ProfileTooLarge(format string, args ...any) *Error {
	return NewError(400, "M_PROFILE_TOO_LARGE", format, args...)
}

// InviteBlocked (M_INVITE_BLOCKED, 403) is an invite that its target does not accept.
func InviteBlocked(format string, args ...any) *Error {
	return NewError(403, "M_INVITE_BLOCKED", format, args...)
}

// URLNotSet (M_URL_NOT_SET, 400) is a ping to an application service without a URL.
func URLNotSet(format string, args ...any) *Error {
	return NewError(400, "M_URL_NOT_SET", format, args...)
}

// BadStatus (M_BAD_STATUS, 502) is an answer of an application service that is not 200.
func BadStatus(format string, args ...any) *Error {
	return NewError(502, "M_BAD_STATUS", format, args...)
}

// UnknownDevice (M_UNKNOWN_DEVICE, 400) is a device that the application service's user does not have.
func UnknownDevice(format string, args ...any) *Error {
	return NewError(400, "M_UNKNOWN_DEVICE", format, args...)
}

// UnknownPos (M_UNKNOWN_POS, 400) is a sliding sync position that has been forgotten.
func UnknownPos(format string, args ...any) *Error {
	return NewError(400, "M_UNKNOWN_POS", format, args...)
}

// Unknown (M_UNKNOWN, 500) is what has no code of its own.
func Unknown(format string, args ...any) *Error { return NewError(500, "M_UNKNOWN", format, args...) }

// BadRequest (M_UNKNOWN, 400) is a wrong request that no code describes.
func BadRequest(format string, args ...any) *Error {
	return NewError(http.StatusBadRequest, "M_UNKNOWN", format, args...)
}

// UnknownToken (M_UNKNOWN_TOKEN, 401) is an access token that is not, or no longer, valid. After a soft logout the
// client may log in again and keep its device and keys.
func UnknownToken(softLogout bool) *Error {
	e := NewError(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "the access token is not known or no longer valid")
	if softLogout {
		e.Extra = map[string]any{"soft_logout": true}
	}
	return e
}

// UserLocked (M_USER_LOCKED, 401) is every request of a locked account. Spec v1.19 client-server-api/#account-locking
func UserLocked() *Error {
	return NewError(http.StatusUnauthorized, "M_USER_LOCKED", "this account has been locked").With("soft_logout", true)
}

// LimitExceeded (M_LIMIT_EXCEEDED, 429) asks the client to come back after retryAfter.
func LimitExceeded(retryAfter time.Duration) *Error {
	e := NewError(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "too many requests")
	e.RetryAfter = retryAfter
	return e
}

// IncompatibleRoomVersion (M_INCOMPATIBLE_ROOM_VERSION, 400) refuses a remote user whose server did not list the
// room's version among those it supports.
func IncompatibleRoomVersion(version string) *Error {
	return NewError(http.StatusBadRequest, "M_INCOMPATIBLE_ROOM_VERSION",
		"your server does not support version %s of this room", version).With("room_version", version)
}

// WrongRoomKeysVersion (M_WRONG_ROOM_KEYS_VERSION, 403) refuses keys for a backup version that is not the current one.
func WrongRoomKeysVersion(current string) *Error {
	return NewError(http.StatusForbidden, "M_WRONG_ROOM_KEYS_VERSION",
		"this is not the current version of the key backup").With("current_version", current)
}
