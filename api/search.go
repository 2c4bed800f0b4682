package api

import (
	"encoding/json"

	"parley.im/parley/server/matrix"
	"parley.im/parley/server/room"
)

// searchRoutes look for messages and people. Spec v1.19 client-server-api/#server-side-search
func (a *api) searchRoutes() []route {
	return []route{
		{method: post, path: client + "/search", handle: a.search, limit: limitSearch, suspended: true, maxBody: 256 << 10},
		{method: post, path: client + "/user_directory/search", handle: a.searchUsers, limit: limitSearch, suspended: true, maxBody: 64 << 10},
	}
}

func (a *api) search(c *call) error {
	var r struct {
		Categories struct {
			RoomEvents *room.SearchRequest `json:"room_events"`
		} `json:"search_categories"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	categories := map[string]json.RawMessage{}
	if q := r.Categories.RoomEvents; q != nil {
		found, err := a.Rooms.Search(c.ctx(), c.reader(), *q, c.Query("next_batch"))
		if err != nil {
			return err
		}
		categories["room_events"] = found
	}
	return c.reply(map[string]any{"search_categories": categories})
}

// Spec v1.19 client-server-api/#user-directory
func (a *api) searchUsers(c *call) error {
	var r struct {
		Term  *string `json:"search_term"`
		Limit *int    `json:"limit"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Term == nil {
		return matrix.MissingParam("search_term is missing")
	}
	limit := 10
	if r.Limit != nil {
		limit = min(max(*r.Limit, 1), 100)
	}
	found, limited, err := a.Rooms.SearchUsers(c.ctx(), c.userID(), *r.Term, limit)
	return c.answer(map[string]any{"results": found, "limited": limited}, err)
}
