// Placeholder until the matrix helper lands the real types: delete this file then.
package matrix

type Event struct{}
type UserID string
type RoomID string
type DeviceID string
type ServerName string
