package difftest

import "encoding/json"

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func unmarshal(b []byte) (object map[string]any) {
	if err := json.Unmarshal(b, &object); err != nil {
		panic(err)
	}
	return object
}
