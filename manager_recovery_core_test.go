package ssmmp

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// passing are the fields of a Manager's core that end with it: connections,
// requests under way, timers, and what is found again from the rest. All others
// are its durable state, so that a new field is compared until it is named here.
var passing = map[string]string{
	"ManagerCore": "cfg out events graphs conns offers expiries waiting lastMessage exchanges timers calls dropped violations refused responses " +
		"restoring restoreTo restored resuming committed startedSeq seekers storeErr slots freeSlots instances byAddr appOf hosts loads connected lost",
	"agent":        "index conn newest backSince healthAsked askedAt healthMissed reports hears hearsSeq heard strangers toKill exchanges doubts doubting asking",
	"instance":     "slot waiters execute killSent leaving suspect refused healthAsked healthMissed idleArmed newestMessage unsaid unsaidMore lastReport rank doubtAgain offers",
	"vertex":       "app edges plugs sockets depth nextRelief restartArmed order",
	"cnapp":        "byName gateways",
	"sessionTable": "ends index indexed",
	"session":      "srcNext srcPrev dstNext dstPrev age",
}

// durableState writes down the durable part of a core's state: all of it but
// what passing names, by reflection.
func durableState(c *ManagerCore) string {
	var b strings.Builder
	var dump func(v reflect.Value, within string)
	fields := func(v reflect.Value) {
		skip := strings.Fields(passing[v.Type().Name()])
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; !slices.Contains(skip, name) {
				fmt.Fprintf(&b, "%s.%s ", v.Type().Name(), name)
				dump(v.Field(i), v.Type().Name())
			}
		}
	}
	dump = func(v reflect.Value, within string) {
		switch v.Kind() {
		case reflect.Pointer:
			switch {
			case v.IsNil():
				fmt.Fprintln(&b, "none")
			case v.Type() == reflect.TypeFor[*agent]() && within != "ManagerCore":
				fmt.Fprintln(&b, "agent", v.Elem().FieldByName("addr"))
			case v.Type() == reflect.TypeFor[*instance]() && within != "ManagerCore":
				fmt.Fprintln(&b, "instance", v.Elem().FieldByName("id"))
			case v.Type() == reflect.TypeFor[*vertex]() && within == "instance":
				fmt.Fprintln(&b, "vertex", v.Elem().FieldByName("app").Elem().FieldByName("name"), v.Elem().FieldByName("name"))
			default:
				dump(v.Elem(), within)
			}
		case reflect.Slice:
			fmt.Fprintf(&b, "%d [\n", v.Len())
			for i := range v.Len() {
				dump(v.Index(i), within)
			}
			fmt.Fprintln(&b, "]")
		case reflect.Struct:
			switch v.Type() {
			case reflect.TypeFor[netip.Addr]():
				fmt.Fprintln(&b, v)
			case reflect.TypeFor[portTable]():
				p := v.Addr().UnsafePointer()
				dumpPorts(&b, (*portTable)(p), c.now)
			case reflect.TypeFor[sessionTable]():
				dumpSessions(&b, c)
			case reflect.TypeFor[answerRing]():
				dumpAnswers(&b, (*answerRing)(v.Addr().UnsafePointer()))
			default:
				fields(v)
			}
		case reflect.Map, reflect.Func, reflect.Interface, reflect.Chan:
			panic("durableState knows no " + v.Type().String() + " in " + within)
		default:
			fmt.Fprintln(&b, v)
		}
	}
	dump(reflect.ValueOf(c).Elem(), "")
	for _, i := range c.inOrder() {
		state := i.state
		i.state = min(state, instanceKilling)
		if state == instanceStopping {
			i.state = instanceDraining // the request of a graceful shutdown is sent again
		}
		dump(reflect.ValueOf(i).Elem(), "ManagerCore")
		i.state = state
	}
	return b.String()
}

func dumpPorts(b *strings.Builder, p *portTable, now time.Duration) {
	for _, port := range slices.Sorted(maps.Keys(p.held)) {
		fmt.Fprintln(b, "held", port, p.held[port])
	}
	for _, port := range slices.Sorted(maps.Keys(p.freed)) {
		if now-p.freed[port] < p.linger {
			fmt.Fprintln(b, "freed", port, p.freed[port])
		}
	}
	fmt.Fprintln(b, p.first, p.last, p.linger, max(p.next, p.first))
}

func dumpSessions(b *strings.Builder, c *ManagerCore) {
	t := &c.sessions
	fmt.Fprintln(b, t.used, t.live)
	for slot := uint32(1); slot < t.used; slot++ {
		s := *t.at(slot)
		fmt.Fprintln(b, slot, s.gen, s.messageID, s.state, s.closeWhen, s.plugPort, s.newPort)
		if s.state != 0 {
			fmt.Fprintln(b, c.slots[s.src].id, c.slots[s.dst].id, s.edge)
		}
	}
	for slot := t.free; slot != 0; slot = t.at(slot).srcNext {
		fmt.Fprint(b, "free ", slot, "\n")
	}
	for _, i := range c.inOrder() {
		fmt.Fprintln(b, "sessions of", i.id)
		c.eachSession(i, func(slot uint32) { fmt.Fprintln(b, slot) })
	}
}

func dumpAnswers(b *strings.Builder, r *answerRing) {
	for n := range r.ring {
		fmt.Fprintln(b, r.ring[(r.next+n)%len(r.ring)])
	}
}

func sameState(t tester, what string, got, want *ManagerCore) {
	t.Helper()
	if a, b := durableState(got), durableState(want); a != b {
		as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
		for i := range min(len(as), len(bs)) {
			if as[i] != bs[i] {
				from := max(0, i-12)
				t.Fatalf("%s: line %d of the state is %q, want %q, after\n%s", what, i, as[i], bs[i], strings.Join(bs[from:i], "\n"))
			}
		}
		t.Fatalf("%s: the state has %d lines, want %d", what, len(as), len(bs))
	}
	if a, b := got.Snapshot(), want.Snapshot(); !reflect.DeepEqual(a, b) {
		t.Fatalf("%s: the snapshot is\n%+v, want\n%+v", what, a, b)
	}
}

func replayEvents(t tester, cfg ManagerConfig, events []Event) *ManagerCore {
	t.Helper()
	c := NewManagerCore(cfg)
	for n, ev := range events {
		// As a store gives it back.
		kept, err := DecodeEvents(nil, AppendEvents(nil, []Event{ev}))
		if err != nil {
			t.Fatalf("%v", err)
		}
		if err := c.Replay(kept[0]); err != nil {
			t.Fatalf("event %d of %d: %v", n, len(events), err)
		}
	}
	return c
}

// drawManagerChaos makes a core with a history, which was drawn.
func drawManagerChaos(t *rapid.T, graphs []*Graph, steps int, each func(s *managerChaos)) {
	cfg := ManagerConfig{Graphs: graphs, FirstPort: 54000, LastPort: 54000 + rapid.Uint16Range(1, 6).Draw(t, "ports"),
		PortLinger:          time.Second,
		SessionsPerInstance: rapid.IntRange(0, 2).Draw(t, "sessions per instance"),
		InstancesPerService: rapid.IntRange(0, 2).Draw(t, "instances per service")}
	s := &managerChaos{managerStepper: newManagerStepper(t, cfg), t: t, lastConn: 2}
	s.message(1, registerLine(1, coreNodes[0], "A, B, C, D", " ~ x_agent: one"))
	s.message(2, registerLine(1, coreNodes[1], "A, B, C, D", " ~ x_agent: two"))
	s.step(ManagerInput{Kind: ManagerInputCommand, Call: 1000, Cmd: DeployCommand{"one"}}, "")
	if rapid.Bool().Draw(t, "begin with a session") {
		s.respond()
		s.request()
		s.respond()
		s.acknowledge()
	}
	for range rapid.IntRange(20, steps).Draw(t, "steps") {
		s.act()
		each(s)
	}
}

// After any history the events replayed give the state back, a checkpoint gives
// it as well, and the events after a checkpoint fit on it.
func TestManagerReplay(t *testing.T) {
	t.Parallel()
	graphs := coreGraphs(t)
	rapid.Check(t, func(t *rapid.T) {
		var follower *ManagerCore   // gets the events as they come
		var fromMiddle *ManagerCore // gets a checkpoint and the events after it
		seen := 0
		drawManagerChaos(t, graphs, 100, func(s *managerChaos) {
			if follower == nil {
				follower = NewManagerCore(s.cfg)
			}
			for ; seen < len(s.history); seen++ {
				if err := follower.Replay(s.history[seen]); err != nil {
					t.Fatalf("%v", err)
				}
				if fromMiddle != nil {
					if err := fromMiddle.Replay(s.history[seen]); err != nil {
						t.Fatalf("after a checkpoint: %v", err)
					}
				}
			}
			follower.now = s.core.now
			sameState(t, "replayed", follower, s.core)
			if rapid.IntRange(0, 19).Draw(t, "checkpoint") == 0 {
				events := s.core.Checkpoint()
				fromMiddle = replayEvents(t, s.cfg, events)
				if again := fromMiddle.Checkpoint(); !reflect.DeepEqual(again, events) {
					t.Fatalf("the checkpoint of a checkpoint is\n%+v, want\n%+v", again, events)
				}
			}
			if fromMiddle != nil {
				fromMiddle.now = s.core.now
				sameState(t, "from a checkpoint", fromMiddle, s.core)
			}
		})
	})
}

// A core that resumes comes to an end with all that was pending: agents that
// come back with what they run, or do not come at all.
func TestManagerResume(t *testing.T) {
	t.Parallel()
	graphs := coreGraphs(t)
	rapid.Check(t, func(t *rapid.T) {
		var s *managerChaos
		drawManagerChaos(t, graphs, 80, func(chaos *managerChaos) { s = chaos })
		var core *ManagerCore
		if rapid.Bool().Draw(t, "from a checkpoint") {
			core = replayEvents(t, s.cfg, s.core.Checkpoint())
		} else {
			core = replayEvents(t, s.cfg, s.history)
		}
		s.now += rapid.SampledFrom([]time.Duration{0, time.Second, time.Hour}).Draw(t, "without a Manager")
		s.restart(core)
		for range rapid.IntRange(0, 40).Draw(t, "steps after") {
			s.act()
		}
		s.settle()
	})
}

// An agent that does not tell what it runs is asked for the health of each
// instance once the Manager is back: so it finds the one that ended meanwhile,
// and the one that runs stays.
func TestManagerResumeAsksHealth(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status Status // of the one that ended
		asked  int    // how often until it is taken to have
	}{{StatusGone, 1}, {StatusNotFound, 3}} {
		t.Run(tt.status.String(), func(t *testing.T) {
			t.Parallel()
			s := newManagerStepper(t, ManagerConfig{Graphs: coreGraphs(t), HealthMisses: 3, IdleAfter: -1})
			answer := func(status func(InstanceID) Status) (asked []InstanceID) {
				for _, r := range slices.Clone(s.requests) {
					id := InstanceID(0)
					switch m := r.msg.(type) {
					case *InstanceHealthRequest:
						id = m.ServiceInstanceID
						asked = append(asked, id)
					case *GracefulShutdownRequest:
						id = m.ServiceInstanceID
					case *HardShutdownRequest:
						id = m.ServiceInstanceID
					}
					s.message(9, encode(t, responseTo(r.msg, status(id))))
				}
				return asked
			}
			well := func(InstanceID) Status { return StatusOK }
			s.message(9, registerLine(1, coreNodes[0], "A, B, C", ""))
			s.step(ManagerInput{Kind: ManagerInputCommand, Call: 1, Cmd: DeployCommand{"one"}}, "")
			answer(well)
			s.message(9, "type: session_request ~ message_id: 1 ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1")
			answer(well)
			if len(s.ready) != 2 {
				t.Fatalf("%d instances run, want A and B", len(s.ready))
			}

			s.restart(replayEvents(t, s.cfg, s.history))
			s.message(9, registerLine(1, coreNodes[0], "A, B, C", ""))
			times := 0
			for round := 0; len(s.live) == 2 && round < 10; round++ {
				asked := answer(func(id InstanceID) Status {
					if id == 2 {
						return tt.status
					}
					return StatusOK
				})
				if round == 0 && !slices.Equal(asked, []InstanceID{1, 2}) {
					t.Fatalf("asked for the health of %v at once, want 1 and 2", asked)
				}
				if slices.Contains(asked, 2) {
					times++
				}
				s.pass(s.cfg.HealthPeriod)
			}
			if _, runs := s.live[1]; !runs || len(s.live) != 1 || times != tt.asked {
				t.Errorf("there are %v, and 2 was asked %d times, want 1 only and %d", s.live, times, tt.asked)
			}
			for _, ev := range s.history {
				if ev.Instance == 1 && ev.Kind != EventInstanceRequested && ev.Kind != EventInstanceReady && ev.Status != StatusOK {
					t.Errorf("what runs: %s", ev)
				}
			}
		})
	}
}

// Message ids are reserved long before they are used: a Manager that takes over
// what was durable half a block ago uses none of them again.
func TestManagerMessagesReserved(t *testing.T) {
	t.Parallel()
	c := NewManagerCore(ManagerConfig{FirstMessage: 7}.WithDefaults())
	durable := c.reserved
	for range 3 {
		c.lastMessage = c.reserved - messageBlock/2 - 2
		before := len(c.events)
		for n := range 4 {
			if id := c.messageID(); id > durable-messageBlock/4 {
				t.Fatalf("id %d is used, and those up to %d are reserved", id, durable)
			}
			if recorded := len(c.events) > before; recorded != (n >= 2) {
				t.Fatalf("at %d of half a block: recorded %t", n-2, recorded)
			}
		}
		durable = c.events[len(c.events)-1].MessageID
	}
}

// A place in the table of sessions that was used as often as its counter goes is
// used no more: no id comes again, and the state can be recovered.
func TestManagerSessionIDsEnd(t *testing.T) {
	t.Parallel()
	c, say, _ := sessionCore(t)
	say(1, ackOne)
	c.sessions.at(1).gen = math.MaxUint32 - 1
	used := map[SessionID]bool{}
	for id := 2; id < 6; id++ {
		s := c.Snapshot().Sessions[0]
		if used[s.ID] || s.ID>>32 == 0 {
			t.Errorf("session id %s", s.ID)
		}
		used[s.ID] = true
		sameState(t, fmt.Sprintf("with session %s", s.ID), replayEvents(t, c.cfg, c.Checkpoint()), c)
		say(1, fmt.Sprintf("type: source_service_session_close_info ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ source_plug_port: 40000 ~ dest_service_name: B ~ dest_service_instance_id: 2 ~ dest_service_instance_network_address: 10.0.0.1 ~ dest_socket_name: S1 ~ dest_socket_port: 54000 ~ dest_socket_new_port: 54000 ~ status: 111", 100+id))
		say(1, fmt.Sprintf("type: session_request ~ message_id: %d ~ sub_type: agent_to_Manager ~ source_service_name: A ~ source_service_instance_id: 1 ~ source_service_instance_network_address: 10.0.0.1 ~ source_plug_name: P1 ~ dest_service_name: B ~ dest_socket_name: S1", id))
		say(1, strings.Replace(ackOne, "message_id: 1 ", fmt.Sprintf("message_id: %d ", id), 1))
	}
}
