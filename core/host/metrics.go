package host

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// buckets are the upper bounds of call durations, in seconds. A call may take
// thirty; below a tenth nobody waits.
var buckets = []float64{0.1, 0.5, 1, 2.5, 5, 10, 30}

// FaultCaller stands beside the sdk's faults for calls that the caller gave up.
const FaultCaller sdk.Fault = "caller"

// CallMetrics are the calls of one method.
type CallMetrics struct {
	Method   string              `json:"method"`
	Calls    int64               `json:"calls" doc:"That have ended"`
	InFlight int64               `json:"in_flight"`
	Errors   map[sdk.Fault]int64 `json:"errors,omitempty" doc:"By whose fault: plugin, back-end, holdfast, or caller, who gave up"`
	Pending  int64               `json:"pending,omitempty" doc:"Answers that the work goes on; they are no errors"`
	Seconds  float64             `json:"seconds" doc:"In all; of listings, without the time of their reader"`
	Longest  float64             `json:"longest_seconds"`
	Buckets  []int64             `json:"-"` // by buckets, and one for the rest
}

// PluginMetrics are what a plugin did since the host started.
type PluginMetrics struct {
	Calls        []CallMetrics `json:"calls"` // by method
	ReadBytes    int64         `json:"read_bytes" doc:"Of disks"`
	WrittenBytes int64         `json:"written_bytes" doc:"To disks"`
	OpenDisks    int64         `json:"open_disks"`
	Starts       int64         `json:"starts"`
	Restarts     int64         `json:"restarts" doc:"Starts after a process that ended by itself, or was ended because it hung"`
	FailedStarts int64         `json:"failed_starts"`
	Breaches     int64         `json:"breaches" doc:"Answers that broke the contract"`
	DroppedLines int64         `json:"dropped_lines" doc:"Of its log, because there were too many"`
}

// meter counts what one plugin does.
type meter struct {
	mutex  sync.Mutex // guards the fields below
	calls  map[string]*CallMetrics
	totals PluginMetrics // without Calls
}

func newMeter() *meter { return &meter{calls: make(map[string]*CallMetrics)} }

func (m *meter) begin(method string) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	c := m.calls[method]
	if c == nil {
		c = &CallMetrics{Method: method, Errors: make(map[sdk.Fault]int64), Buckets: make([]int64, len(buckets)+1)}
		m.calls[method] = c
	}
	c.InFlight++
}

// end counts a call that begin was told of. fault is "" if it worked.
func (m *meter) end(method string, took time.Duration, fault sdk.Fault, pending bool) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	c, seconds := m.calls[method], took.Seconds()
	c.InFlight--
	c.Calls++
	c.Seconds += seconds
	c.Longest = max(c.Longest, seconds)
	i, _ := slices.BinarySearch(buckets, seconds)
	c.Buckets[i]++
	switch {
	case pending:
		c.Pending++
	case fault != "":
		c.Errors[fault]++
	}
}

// count changes the totals.
func (m *meter) count(change func(*PluginMetrics)) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	change(&m.totals)
}

// snapshot is what was counted so far.
func (m *meter) snapshot() PluginMetrics {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	s := m.totals
	s.Calls = []CallMetrics{}
	for _, c := range m.calls {
		copied := *c
		copied.Buckets = slices.Clone(c.Buckets)
		copied.Errors = make(map[sdk.Fault]int64, len(c.Errors))
		for fault, n := range c.Errors {
			copied.Errors[fault] = n
		}
		s.Calls = append(s.Calls, copied)
	}
	slices.SortFunc(s.Calls, func(a, b CallMetrics) int { return strings.Compare(a.Method, b.Method) })
	return s
}

// faultOf is whose fault an error of a call is; "" for none.
func faultOf(err error) sdk.Fault {
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[*sdk.Error](err)
	switch {
	case !ok:
		return FaultCaller // the platform's errors are all of this type but for a caller's own end
	case e.Fault == "":
		return sdk.FaultPlugin
	default:
		return e.Fault
	}
}
