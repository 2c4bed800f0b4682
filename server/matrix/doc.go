// Package matrix is the Matrix specification (v1.19, room versions 1 to 12) as pure functions: identifiers, errors,
// canonical JSON, signatures, events, redaction, authorization rules and state resolution. It has no clock, network,
// database or goroutine; what it needs of the world it is given as a value or a function.
//
// Bytes from another server go through [ParseEvent], which trusts nothing. Bytes from our own database go through
// [LoadEvent], which trusts everything and parses only what is asked for. Events are immutable; the JSON they give out
// is shared and must not be written to.
package matrix
