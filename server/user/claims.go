package user

import (
	"fmt"
	"slices"
	"strings"
)

// claims are what a provider says of a person.
type claims map[string]any

// values of a claim: of a list all, of anything that is no text the way it is written. Names within objects are joined by dots.
func (c claims) values(name string) []string {
	switch v := c.find(name).(type) {
	case nil:
		return nil
	case []any:
		var all []string
		for _, one := range v {
			all = append(all, fmt.Sprint(one))
		}
		return all
	default:
		return []string{fmt.Sprint(v)}
	}
}

func (c claims) find(name string) any {
	if v, ok := c[name]; ok {
		return v
	}
	for i := range len(name) {
		if name[i] != '.' {
			continue
		}
		if inner, ok := c[name[:i]].(map[string]any); ok {
			if v := claims(inner).find(name[i+1:]); v != nil {
				return v
			}
		}
	}
	return nil
}

// text is a claim that is one text; "" if it is missing.
func (c claims) text(name string) string {
	s, _ := c.find(name).(string)
	return strings.TrimSpace(s)
}

// meet reports whether all requirements hold.
func (c claims) meet(all []SSORequirement) bool {
	return !slices.ContainsFunc(all, func(r SSORequirement) bool {
		return !slices.ContainsFunc(c.values(r.Claim), func(v string) bool { return slices.Contains(r.Values, v) })
	})
}
