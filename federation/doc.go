// Package federation is the door to other servers, in both directions.
//
// Incoming requests are authenticated (X-Matrix always, an HTTP Signature as the policy has it), bounded, and handed to
// the rooms of the house. Outgoing ones are made by [Client], which finds the server, signs the request twice, keeps to
// limits and remembers which servers do not answer. [Sender] delivers what happens here to the servers it concerns.
//
// In the tables lie: of each other server how far it has been delivered, whether it answers and whether it signs
// (destinations); what must reach a server and is not in the stream (outbox); the signing keys of others (server_keys,
// server_key_answers).
package federation
