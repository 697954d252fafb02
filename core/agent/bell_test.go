package agent

import "testing"

func TestBellWakesAllWhoWaitedAndNobodyLater(t *testing.T) {
	var b bell
	b.ring() // nobody waits
	first, second := b.heard(), b.heard()
	select {
	case <-first:
		t.Error("a ring before the wait was heard")
	default:
	}
	b.ring()
	<-first
	<-second
	select {
	case <-b.heard():
		t.Error("one ring was heard twice")
	default:
	}
}
