package matrixtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"parley.im/parley/server/matrix"
)

// Fork is a branch of the room's graph, with the state that its events see.
type Fork struct {
	r    *Room
	tip  []*matrix.Event
	over map[matrix.StateTuple]matrix.EventID // what differs from the state of the file
	out  map[int]bool                         // members who were kicked or banned here
	n    int                                  // of joins of new members
	name string
}

// Fork begins a branch after an event, most often the join of the server that is tested. name is a word that tells the branches apart: it is
// in what their events say.
func (r *Room) Fork(name string, after *matrix.Event) *Fork {
	f := &Fork{r: r, tip: []*matrix.Event{after}, over: map[matrix.StateTuple]matrix.EventID{}, out: map[int]bool{}, name: name}
	if after.IsState() {
		f.over[after.Tuple()] = after.ID()
	}
	return f
}

// Tip is the newest event of the branch.
func (f *Fork) Tip() *matrix.Event { return f.tip[0] }

// Differs is how many keys differ from the state of the file.
func (f *Fork) Differs() int { return len(f.over) }

func (f *Fork) add(sender int, typ string, key *string, content string) (*matrix.Event, error) {
	e, err := f.r.build(matrix.Builder{Sender: f.r.Member(sender), Type: typ, StateKey: key, Content: json.RawMessage(content)}, f.tip, f.over)
	if err != nil {
		return nil, err
	}
	if e.IsState() {
		f.over[e.Tuple()] = e.ID()
	}
	f.tip = []*matrix.Event{e}
	return e, nil
}

// Talk adds n events as they are in a busy room: of ten, about five messages, two changes of a profile, one of other state, a new
// member, and now and then somebody is kicked or banned, or the power levels change. All are allowed by the state of the branch.
func (f *Fork) Talk(n int) ([]*matrix.Event, error) {
	r := f.r
	events := make([]*matrix.Event, 0, n)
	for i := range n {
		who := r.rand.IntN(r.size.Members)
		for f.out[who] {
			who = r.rand.IntN(r.size.Members)
		}
		user := string(r.Member(who))
		mod := r.rand.IntN(min(mods, r.size.Members))
		var e *matrix.Event
		var err error
		switch dice := r.rand.IntN(100); {
		case dice < 55:
			e, err = f.add(who, matrix.TypeMessage, nil, fmt.Sprintf(`{"body":"message %d of %s, which says something about the matter","msgtype":"m.text"}`, i, f.name))
		case dice < 75:
			e, err = f.add(who, matrix.TypeMember, &user, profile("In "+f.name, i))
		case dice < 86 && r.size.States > 0:
			typ, key, content := r.otherState(r.rand.IntN(r.size.States), len(f.over))
			e, err = f.add(mod, typ, &key, content)
		case dice < 96:
			f.n++
			e, err = f.join()
		case dice < 98 && who >= mods:
			f.out[who] = true
			e, err = f.add(mod, matrix.TypeMember, &user, `{"membership":"leave","reason":"noise"}`)
		case dice < 99 && who >= mods:
			f.out[who] = true
			e, err = f.add(mod, matrix.TypeMember, &user, `{"membership":"ban"}`)
		default:
			empty := ""
			e, err = f.add(0, matrix.TypePowerLevels, &empty, r.powers(i))
		}
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

// join adds a member whom no other branch has.
func (f *Fork) join() (*matrix.Event, error) {
	user := matrix.UserID(fmt.Sprintf("@new%06d-%s:%s", f.n, f.name, f.r.Servers[f.n%len(f.r.Servers)]))
	key := string(user)
	e, err := f.r.build(matrix.Builder{Sender: user, Type: matrix.TypeMember, StateKey: &key, Content: json.RawMessage(profile("New", f.n))}, f.tip, f.over)
	if err != nil {
		return nil, err
	}
	f.over[e.Tuple()] = e.ID()
	f.tip = []*matrix.Event{e}
	return e, nil
}

// Rename adds a change of the profile of each of the members from to to-1.
func (f *Fork) Rename(from, to int) ([]*matrix.Event, error) {
	var events []*matrix.Event
	for i := from; i < to; i++ {
		user := string(f.r.Member(i))
		e, err := f.add(i, matrix.TypeMember, &user, profile("In "+f.name, i))
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

// Power adds a change of the power levels.
func (f *Fork) Power(n int) (*matrix.Event, error) {
	empty := ""
	return f.add(0, matrix.TypePowerLevels, &empty, f.r.powers(n))
}

// Say adds a message of a member.
func (f *Fork) Say(member int, body string) (*matrix.Event, error) {
	content, err := json.Marshal(map[string]string{"body": body, "msgtype": "m.text"})
	if err != nil {
		return nil, err
	}
	return f.add(member, matrix.TypeMessage, nil, string(content))
}

// State is the state after the branch's events as it sees it.
func (f *Fork) State() map[matrix.StateTuple]matrix.EventID {
	all := f.r.Current()
	maps.Copy(all, f.over)
	return all
}

// Merge begins a branch after the newest events of several. What it sees where they differ is of no matter to messages of members whom none of
// them has changed.
func (r *Room) Merge(name string, forks ...*Fork) *Fork {
	f := &Fork{r: r, over: map[matrix.StateTuple]matrix.EventID{}, out: map[int]bool{}, name: name}
	for _, other := range forks {
		f.tip = append(f.tip, other.Tip())
		maps.Copy(f.over, other.over)
		maps.Copy(f.out, other.out)
	}
	return f
}

// Sign makes an event of what another server answered to make_join, of one of the room's servers.
func (r *Room) Sign(template json.RawMessage) (*matrix.Event, error) {
	b, err := matrix.ParseTemplate(template, r.Version)
	if err != nil {
		return nil, err
	}
	r.now = r.now.Add(time.Millisecond)
	b.Time = r.now
	return b.Build(r.Version, b.Sender.Server(), r.keys[b.Sender.Server()])
}
