package main

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ssmmp/ssmmp/ssmmptest"
)

// settings are the fields of a SimulationConfig that a person set, as
// "Field=value".
type settings []string

func (s settings) String() string {
	if len(s) == 0 {
		return "defaults"
	}
	return strings.Join(s, " ")
}

// add checks a setting, and takes it.
func (s *settings) add(setting string) error {
	if err := (settings{setting}).apply(&ssmmptest.SimulationConfig{}); err != nil {
		return err
	}
	*s = append(*s, setting)
	return nil
}

func (s settings) apply(c *ssmmptest.SimulationConfig) error {
	v := reflect.ValueOf(c).Elem()
	for _, setting := range s {
		name, value, ok := strings.Cut(setting, "=")
		f := v.FieldByName(name)
		if !ok || !f.IsValid() {
			return fmt.Errorf("%q is not Setting=value; the settings are %s", setting, strings.Join(settingNames(), ", "))
		}
		var err error
		switch f.Interface().(type) {
		case time.Duration:
			var d time.Duration
			d, err = time.ParseDuration(value)
			f.SetInt(int64(d))
		case bool:
			var b bool
			b, err = strconv.ParseBool(value)
			f.SetBool(b)
		case uint16:
			var n uint64
			n, err = strconv.ParseUint(value, 10, 16)
			f.SetUint(n)
		default:
			var n int64
			n, err = strconv.ParseInt(value, 10, 32)
			f.SetInt(n)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func settingNames() []string {
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[ssmmptest.SimulationConfig]()) {
		names = append(names, f.Name)
	}
	return names
}

// faultKind returns a kind of fault by its name.
func faultKind(name string) (ssmmptest.SimulationFaultKind, error) {
	var kind ssmmptest.SimulationFaultKind
	if err := kind.UnmarshalText([]byte(name)); err == nil && kind.Injectable() {
		return kind, nil
	}
	var names []string
	for _, k := range faultKinds() {
		names = append(names, k.String())
	}
	return 0, fmt.Errorf("-fault %q: the kinds are %s", name, strings.Join(names, ", "))
}

// faultKinds are those that can be injected.
func faultKinds() []ssmmptest.SimulationFaultKind {
	return slices.DeleteFunc(ssmmptest.SimulationFaultKinds(), func(k ssmmptest.SimulationFaultKind) bool { return !k.Injectable() })
}

// faultsOf draws the faults of a run. Meshes that are compared get the same.
func (p *plan) faultsOf(seed uint64) []ssmmptest.SimulationFault {
	r := rand.New(rand.NewPCG(seed, 55555))
	kinds := faultKinds()
	if kind, err := faultKind(p.kind); err == nil {
		kinds = []ssmmptest.SimulationFaultKind{kind}
	}
	var faults []ssmmptest.SimulationFault
	for range p.faults {
		f := ssmmptest.SimulationFault{
			Kind: kinds[r.IntN(len(kinds))],
			At:   time.Duration(r.Int64N(int64(p.length))).Truncate(time.Millisecond),
			For:  time.Second + time.Duration(r.Int64N(int64(30*time.Second))).Truncate(time.Millisecond),
			// What is late, slow or jumps does so by up to two seconds.
			Amount: time.Duration(r.Int64N(int64(2*time.Second))).Truncate(time.Millisecond) + time.Millisecond,
			Nodes:  []int{r.IntN(p.nodes)},
		}
		faults = append(faults, f)
	}
	slices.SortStableFunc(faults, func(a, b ssmmptest.SimulationFault) int { return int(a.At - b.At) })
	return faults
}
