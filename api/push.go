package api

import (
	"encoding/json"

	"parley.im/parley/server/matrix"
)

// pushRoutes are push rules and pushers. Spec v1.19 client-server-api/#push-notifications
func (a *api) pushRoutes() []route {
	rule := client + "/pushrules/global/{kind}/{ruleId}"
	return []route{
		{method: get, path: client + "/pushrules/", handle: a.pushRules, suspended: true, aliases: []string{client + "/pushrules", r0 + "/pushrules"}},
		{method: get, path: client + "/pushrules/global/", handle: a.globalPushRules, suspended: true,
			aliases: []string{client + "/pushrules/global", r0 + "/pushrules/global"}},
		{method: get, path: client + "/pushrules/global/{kind}", handle: a.kindPushRules, suspended: true,
			aliases: []string{client + "/pushrules/global/{kind}/", r0 + "/pushrules/global/{kind}/"}},
		{method: get, path: rule, handle: a.pushRule, suspended: true},
		{method: put, path: rule, handle: a.setPushRule, limit: limitAccount, suspended: true, maxBody: 64 << 10},
		{method: del, path: rule, handle: a.deletePushRule, limit: limitAccount, suspended: true},
		{method: get, path: rule + "/enabled", handle: a.pushRuleEnabled, suspended: true},
		{method: put, path: rule + "/enabled", handle: a.setPushRuleEnabled, limit: limitAccount, suspended: true, maxBody: 64 << 10},
		{method: get, path: rule + "/actions", handle: a.pushRuleActions, suspended: true},
		{method: put, path: rule + "/actions", handle: a.setPushRuleActions, limit: limitAccount, suspended: true, maxBody: 64 << 10},
		{method: get, path: client + "/pushers", handle: a.pushers, suspended: true},
		{method: post, path: client + "/pushers/set", handle: a.setPusher, limit: limitAccount, suspended: true, maxBody: 64 << 10},
	}
}

func (a *api) pushRules(c *call) error { return c.replyRaw(a.Push.Rules(c.ctx(), c.userID())) }

func (a *api) globalPushRules(c *call) error {
	all, err := a.Push.Rules(c.ctx(), c.userID())
	if err != nil {
		return err
	}
	var rules struct {
		Global json.RawMessage `json:"global"`
	}
	if err := json.Unmarshal(all, &rules); err != nil {
		return err
	}
	return c.replyJSON(rules.Global)
}

func (a *api) kindPushRules(c *call) error {
	return c.replyRaw(a.Push.KindRules(c.ctx(), c.userID(), c.Param("kind")))
}

func (a *api) pushRule(c *call) error {
	return c.replyRaw(a.Push.Rule(c.ctx(), c.userID(), c.Param("kind"), c.Param("ruleId")))
}

func (a *api) setPushRule(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	err = a.Push.SetRule(c.ctx(), c.userID(), c.Param("kind"), c.Param("ruleId"), c.Query("before"), c.Query("after"), body)
	if err != nil {
		return err
	}
	return c.done()
}

func (a *api) deletePushRule(c *call) error {
	if err := a.Push.DeleteRule(c.ctx(), c.userID(), c.Param("kind"), c.Param("ruleId")); err != nil {
		return err
	}
	return c.done()
}

func (a *api) pushRuleEnabled(c *call) error {
	enabled, err := a.Push.RuleEnabled(c.ctx(), c.userID(), c.Param("kind"), c.Param("ruleId"))
	return c.answer(map[string]bool{"enabled": enabled}, err)
}

func (a *api) setPushRuleEnabled(c *call) error {
	var r struct {
		Enabled *bool `json:"enabled"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Enabled == nil {
		return matrix.MissingParam("enabled is missing")
	}
	if err := a.Push.SetRuleEnabled(c.ctx(), c.userID(), c.Param("kind"), c.Param("ruleId"), *r.Enabled); err != nil {
		return err
	}
	return c.done()
}

func (a *api) pushRuleActions(c *call) error {
	actions, err := a.Push.RuleActions(c.ctx(), c.userID(), c.Param("kind"), c.Param("ruleId"))
	return c.answer(map[string]json.RawMessage{"actions": actions}, err)
}

func (a *api) setPushRuleActions(c *call) error {
	var r struct {
		Actions json.RawMessage `json:"actions"`
	}
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Actions == nil {
		return matrix.MissingParam("actions is missing")
	}
	if err := a.Push.SetRuleActions(c.ctx(), c.userID(), c.Param("kind"), c.Param("ruleId"), r.Actions); err != nil {
		return err
	}
	return c.done()
}

func (a *api) pushers(c *call) error { return c.replyRaw(a.Push.Pushers(c.ctx(), c.userID())) }

func (a *api) setPusher(c *call) error {
	body, err := c.object()
	if err != nil {
		return err
	}
	if err := a.Push.SetPusher(c.ctx(), c.userID(), c.deviceID(), body); err != nil {
		return err
	}
	return c.done()
}
