package storage

// WriteNodes lets benchmarks write the nodes of a state tree as an append does.
func WriteNodes(tx *Tx, room int64, nodes *StateNodes) error { return tx.writeNodes(room, 0, nodes) }
