// Package difftest compares package matrix with two other implementations on random rooms: gomatrixserverlib (room
// versions 1 to 12) and mautrix-go (room versions 3 to 12). It is a module of its own, so that neither their
// dependencies nor mautrix's need of GOEXPERIMENT=jsonv2 reach the server.
//
//	cd server/matrix/difftest
//	GOEXPERIMENT=jsonv2 go test ./...                      # 1,000 rooms
//	GOEXPERIMENT=jsonv2 go test . -v -run TestRandomRooms -rooms 100000 -timeout 0
//	GOEXPERIMENT=jsonv2 go test . -v -run TestRandomRooms -rooms 12000 -first 1000 -timeout 0   # seeds 1000 to 1999 of each version
//
// Without GOEXPERIMENT=jsonv2 only gomatrixserverlib is asked. Where an implementation is known not to do what the
// spec says, the comparison leaves the case out; faults_test.go lists these cases with the spec's words, and fails
// when one of them has gone.
package difftest
