package sdk

import "slices"

// abilityOf is an ability and how it is found.
type abilityOf struct {
	name   Ability
	typed  func(Platform) bool          // by the Go type alone
	opened func(Platform) bool          // as As does
	grant  func(target, value any) bool // sets the interface, if target points to one
}

func abilityAs[T any](name Ability) abilityOf {
	return abilityOf{
		name:   name,
		typed:  func(p Platform) bool { _, ok := p.(T); return ok },
		opened: func(p Platform) bool { _, ok := As[T](p); return ok },
		grant: func(target, value any) bool {
			to, ok := target.(*T)
			if ok {
				*to, ok = value.(T)
			}
			return ok
		},
	}
}

// known are the abilities of protocol 1, in the order in which it gained them.
var known = []abilityOf{
	abilityAs[Source](AbilitySource),
	abilityAs[ChangeTracker](AbilityChangeTracker),
	abilityAs[Target](AbilityTarget),
	abilityAs[Power](AbilityPower),
	abilityAs[Watcher](AbilityWatcher),
	abilityAs[Replicator](AbilityReplicator),
	abilityAs[Activator](AbilityActivator),
	abilityAs[Networker](AbilityNetworker),
	abilityAs[Pools](AbilityPools),
	abilityAs[Console](AbilityConsole),
	abilityAs[Guest](AbilityGuest),
}

func selected(which func(abilityOf) bool) []Ability {
	names := []Ability{}
	for _, a := range known {
		if which(a) {
			names = append(names, a.name)
		}
	}
	return names
}

// Abilities lists every ability that there is.
func Abilities() []Ability { return selected(func(abilityOf) bool { return true }) }

// AbilitiesOf lists what an open platform can do, as As finds it.
func AbilitiesOf(p Platform) []Ability {
	return selected(func(a abilityOf) bool { return a.opened(p) })
}

// AbilitiesOfType lists what the Go type of a platform can do at most; a nil
// pointer will do.
func AbilitiesOfType(p Platform) []Ability {
	return selected(func(a abilityOf) bool { return a.typed(p) })
}

// Offers reports whether an open platform has an ability, as As finds it.
func Offers(p Platform, a Ability) bool { return slices.Contains(AbilitiesOf(p), a) }

// Grant is what an As method of a platform does whose abilities are not those of
// its Go type: it sets the interface that target points to, to value, if offers
// allows that ability and value has its methods.
func Grant(target, value any, offers func(Ability) bool) bool {
	for _, a := range known {
		if offers(a.name) && a.grant(target, value) {
			return true
		}
	}
	return false
}
