package ssmmp

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The fixed points of PROTOCOL section 1 are what a configuration that says
// nothing else gets.
func TestFixedPoints(t *testing.T) {
	t.Parallel()
	m := ManagerConfig{}.WithDefaults()
	if m.Address != ":55555" {
		t.Errorf("the Manager listens on %q", m.Address)
	}
	if m.FirstPort != 54000 || m.LastPort != 55554 {
		t.Errorf("sockets get ports from %d to %d", m.FirstPort, m.LastPort)
	}
	node := netip.MustParseAddr("10.0.0.1")
	a := AgentConfig{Manager: "10.0.0.9:55555", Address: node}.WithDefaults()
	if a.Listen != "localhost:55556" {
		t.Errorf("an agent listens on %q", a.Listen)
	}
	if tcp, ok := a.Transport.(TCP); !ok || tcp.LocalAddr != node {
		t.Errorf("an agent's transport is %+v", a.Transport)
	}
	unset := func(string) (string, bool) { return "", false }
	for addr, agent := range map[string]string{
		"10.0.0.1": "localhost:55556", "127.0.0.2": "127.0.0.2:55556", "::1": "[::1]:55556",
	} {
		l, err := ParseLaunch([]string{"A", "7", addr, "", ""}, unset)
		if err != nil || l.Agent != agent {
			t.Errorf("an instance on %s looks for its agent at %q, %v", addr, l.Agent, err)
		}
	}
}

// Every fault of a configuration is reported, at once.
func TestManagerConfigFaults(t *testing.T) {
	t.Parallel()
	cfg := ManagerConfig{KeepBytes: -1 << 40, HealthMisses: -1, KeepFor: -1, QuickEnd: -1, QuickEnds: -1, BackOffFrom: time.Minute, BackOffTo: time.Second, StormBrake: 2, FirstPort: 2, LastPort: 1, FirstMessage: ownIDs, FirstInstance: math.MaxInt64}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no fault")
	}
	for _, field := range []string{"Graphs", "KeepBytes: -1099511627776", "HealthMisses", "KeepFor", "QuickEnd:", "QuickEnds:", "BackOffTo", "StormBrake", "FirstPort", "FirstMessage", "FirstInstance"} {
		if !strings.Contains(err.Error(), "ManagerConfig."+field) {
			t.Errorf("%s is not among the faults:\n%v", field, err)
		}
	}
}

// No time of a configuration may be negative, unless that means never, or so
// long that a sum with another would overflow.
func TestConfigTimes(t *testing.T) {
	t.Parallel()
	never := map[string]bool{"ManagerConfig.IdleAfter": true, "JoinConfig.IdleTimeout": true}
	for _, cfg := range []interface{ Validate() error }{new(ManagerConfig), new(AgentConfig), new(JoinConfig)} {
		v := reflect.ValueOf(cfg).Elem()
		for i := range v.NumField() {
			d, ok := v.Field(i).Addr().Interface().(*time.Duration)
			if !ok {
				continue
			}
			field := v.Type().Name() + "." + v.Type().Field(i).Name
			for value, fault := range map[time.Duration]bool{-1: !never[field], 0: false, 100 * 24 * time.Hour: false, math.MaxInt64: true} {
				*d = value
				if is := strings.Contains(cfg.Validate().Error(), fmt.Sprintf("ssmmp: %s: %v: ", field, value)); is != fault {
					t.Errorf("%s: %v is a fault: %t, want %t", field, value, is, fault)
				}
			}
			*d = 0
		}
	}
}
