package simulation

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// register is a piece of a volume whose content is looked at as one value: a block, or a sector of one.
type register struct {
	off   uint64
	len   uint64
	group state.GroupID
}

// volume is one VDI and what was done to it.
type volume struct {
	name   string
	shared bool
	regs   []register
	from   []uint64 // contents of the registers at the beginning: 0, or the snapshot's that it was cloned from

	users sync.WaitGroup

	mu       sync.Mutex // guards what follows
	events   []*event
	sessions []*session
	stolen   bool // an administrator unlocked it, or deleted it: sessions may end with an error
	closed   bool // its runner shall end
}

// event is one operation of a client, or a snapshot: a read of everything at one point in time.
type event struct {
	kind      wire.Kind
	sess      *session // nil: not through a session
	first     int      // registers [first, last)
	last      int
	value     uint64 // written; unique. Of a zero or a trim too, which reads as 0
	got       []uint64
	fua       bool
	call, ret int64 // ret 0: no outcome known
	what      string
}

func (e *event) writes() bool {
	return e.kind == wire.KindWrite || e.kind == wire.KindZero || e.kind == wire.KindTrim
}

// begin notes a call.
func (v *volume) begin(e *event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.events = append(v.events, e)
}

// The model of a register. Its state is what the register may fall back to when its group goes on after all members lost power: the values since the last
// flush, oldest first; the last one is what a read sees. An input changes it:
//
//	write      appends
//	fua        leaves only itself
//	flush      drops what is older than the newest value whose write was answered before the flush was asked for (on a shared volume: by the same client);
//	           one that waited through a loss may come after it
//	loss       falls back to any of them, but not behind what a client that lives on has been answered: it sends that again (R17)
//	maybe      a write without an answer appends, or never came; or one that was there for a while, before a loss took it back and it was sent again
//	read       sees the last
type input struct {
	kind   string
	id     uint64          // of the value
	flying map[uint64]bool // loss, flush: writes without an answer at that moment
	live   *session        // loss: the client that sends again, nil if none
	by     *session        // flush of a shared volume: it covers what this one wrote
}

// contents of value ids, and who wrote them.
type values struct {
	content map[uint64]uint64
	writer  map[uint64]*session
}

func (vs *values) model() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{"0"} },
		Step: func(st, in, out any) []any {
			log := strings.Split(st.(string), ",")
			i := in.(input)
			switch i.kind {
			case "read":
				if vs.content[number(log[len(log)-1])] != out.(uint64) {
					return nil
				}
				return []any{st}
			case "write":
				return []any{st.(string) + "," + strconv.FormatUint(i.id, 10)}
			case "fua":
				return []any{strconv.FormatUint(i.id, 10)}
			case "maybe":
				return []any{st, st.(string) + "," + strconv.FormatUint(i.id, 10)}
			case "flush":
				k := len(log) - 1
				for k > 0 && (i.flying[number(log[k])] || i.by != nil && vs.writer[number(log[k])] != i.by) {
					k--
				}
				return []any{strings.Join(log[k:], ",")}
			case "loss":
				k := 0
				for j, s := range log {
					if id := number(s); i.live != nil && vs.writer[id] == i.live && !i.flying[id] {
						k = j
					}
				}
				var list []any
				for ; k < len(log); k++ {
					list = append(list, strings.Join(log[:k+1], ","))
				}
				return list
			}
			panic(i.kind)
		},
		Equal: func(a, b any) bool { return a.(string) == b.(string) },
		DescribeOperation: func(in, out any) string {
			i := in.(input)
			if i.kind == "read" {
				return fmt.Sprint("read ", out)
			}
			return fmt.Sprint(i.kind, " ", i.id)
		},
	}
	return m.ToModel()
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// answeredIn is when a session first was answered by a group, 0: never.
func (v *volume) answeredIn(s *session, g state.GroupID) int64 {
	first := int64(0)
	for _, e := range v.events {
		if e.sess == s && e.ret != 0 && e.kind != wire.KindFlush && (first == 0 || e.ret < first) &&
			slices.ContainsFunc(v.regs[e.first:e.last], func(r register) bool { return r.group == g }) {
			first = e.ret
		}
	}
	return first
}

// fencedAt is when a write of s that nobody answered can take effect no more: its group has served a later session (R14).
func (v *volume) fencedAt(s *session, g state.GroupID) int64 {
	end := int64(math.MaxInt64 / 2)
	if v.shared {
		return end
	}
	for _, o := range v.sessions {
		if o.born > s.born {
			if at := v.answeredIn(o, g); at != 0 {
				end = min(end, at)
			}
		}
	}
	return end
}

// liveAt is the session that goes on at a loss and sends again what it was answered: it was open, and its group answered it afterwards.
func (v *volume) liveAt(l loss) *session {
	if v.shared {
		return nil
	}
	for _, s := range v.sessions {
		if s.born > l.before || s.told.Load() { // one that was told of a loss has not sent all again
			continue
		}
		for _, e := range v.events {
			if e.sess == s && e.ret > l.after && e.kind != wire.KindFlush &&
				slices.ContainsFunc(v.regs[e.first:e.last], func(r register) bool { return r.group == l.group }) {
				return s
			}
		}
	}
	return nil
}

// history is what happened to one register.
func (v *volume) history(n int, losses []loss) ([]porcupine.Operation, *values) {
	r := v.regs[n]
	vs := &values{content: map[uint64]uint64{0: 0}, writer: map[uint64]*session{}}
	if v.from != nil {
		vs.content[0] = v.from[n]
	}
	var mine []loss
	for _, l := range losses {
		if l.group == r.group {
			mine = append(mine, l)
		}
	}
	var ops []porcupine.Operation
	add := func(call, ret int64, in input, out any) {
		ops = append(ops, porcupine.Operation{ClientId: len(ops), Input: in, Output: out, Call: call, Return: ret})
	}
	flying := func(from, to int64) map[uint64]bool {
		f := map[uint64]bool{}
		for _, e := range v.events {
			if e.writes() && e.first <= n && n < e.last && e.call < to && (e.ret == 0 || e.ret > from) {
				f[e.value] = true
			}
		}
		return f
	}
	for _, e := range v.events {
		if e.kind == wire.KindFlush {
			if e.ret != 0 && len(mine) > 0 {
				at := e.call
				for _, l := range mine { // what a client that died had written was lost before this flush could cover it
					if e.call < l.after && e.ret > l.before {
						at = e.ret
					}
				}
				in := input{kind: "flush", flying: flying(e.call, at)}
				if v.shared {
					in.by = e.sess
				}
				add(e.call, at, in, nil)
			}
			continue
		}
		if n < e.first || n >= e.last {
			continue
		}
		if !e.writes() {
			if e.ret != 0 {
				add(e.call, e.ret, input{kind: "read"}, e.got[n-e.first])
			}
			continue
		}
		vs.content[e.value] = e.value
		if e.kind != wire.KindWrite {
			vs.content[e.value] = 0
		}
		vs.writer[e.value] = e.sess
		ret, kind := e.ret, "write"
		if e.fua && ret != 0 {
			kind = "fua"
		}
		if ret == 0 {
			ret, kind = max(v.fencedAt(e.sess, r.group), e.call), "maybe"
		}
		for _, l := range mine {
			if e.call < l.after && ret > l.before {
				add(e.call, l.after, input{kind: "maybe", id: e.value}, nil)
			}
		}
		add(e.call, ret, input{kind: kind, id: e.value}, nil)
	}
	for _, l := range mine {
		add(l.before, l.after, input{kind: "loss", flying: flying(l.before, l.after), live: v.liveAt(l)}, nil)
	}
	return ops, vs
}

// checkTime bounds the search for an order of one register's operations.
const checkTime = 20 * time.Second

// linearizable says what is wrong with the volume's history, register by register.
func (v *volume) linearizable(losses []loss) (bad []string, unknown int) {
	for n := range v.regs {
		ops, vs := v.history(n, losses)
		switch porcupine.CheckOperationsTimeout(vs.model(), ops, checkTime) {
		case porcupine.Illegal:
			bad = append(bad, fmt.Sprintf("%s at %d+%d (group %d): no order explains what clients saw\n%s", v.name, v.regs[n].off, v.regs[n].len, v.regs[n].group,
				describe(vs, ops)))
		case porcupine.Unknown:
			unknown++
		}
	}
	return bad, unknown
}

// describe lists a history, so far as it helps: up to the first read that has no explanation.
func describe(vs *values, ops []porcupine.Operation) string {
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
	lo, hi := 0, len(ops)
	for lo < hi { // the shortest part that is bad
		mid := (lo + hi) / 2
		if porcupine.CheckOperationsTimeout(vs.model(), prefix(ops, mid), checkTime) == porcupine.Illegal {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	last := ops[max(0, min(lo, len(ops))-1)]
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var b strings.Builder
	for n, o := range ops {
		if at := slices.IndexFunc(ops, func(o porcupine.Operation) bool { return o.ClientId == last.ClientId }); n < at-40 || n > at+15 {
			continue
		}
		if o.ClientId == last.ClientId {
			b.WriteString("  ->")
		}
		i := o.Input.(input)
		live := ""
		if i.live != nil {
			live = fmt.Sprint(" live ", i.live.id)
		}
		out := o.Output
		by := ""
		if s := vs.writer[i.id]; s != nil && i.kind != "read" {
			by = fmt.Sprint(" by session ", s.id)
		}
		what := fmt.Sprint(i.id)
		if i.id != 0 && vs.content[i.id] == 0 {
			what += " of zeros"
		}
		if i.kind == "read" {
			what = fmt.Sprint(out)
		}
		fmt.Fprintf(&b, "    [%d, %d] %s %s%s%s\n", o.Call, o.Return, i.kind, what, by, live)
	}
	return b.String()
}

// prefix is the history as it stood when the k-th answer came: calls made before it and not answered are open.
func prefix(ops []porcupine.Operation, k int) []porcupine.Operation {
	if k == 0 {
		return nil
	}
	end := ops[k-1].Return
	list := slices.Clone(ops[:k])
	for _, o := range ops[k:] {
		if o.Call < end && o.Input.(input).kind != "read" {
			o.Return = math.MaxInt64 / 2
			list = append(list, o)
		}
	}
	return list
}
