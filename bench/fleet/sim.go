package main

import (
	"math/rand/v2"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/schedule"
)

// scenario is what happens to a fleet.
type scenario struct {
	proxies  int
	lifetime time.Duration // of an access token
	warm     time.Duration // before anything happens, from a fleet of evenly spread ages
	after    time.Duration // how long to look on once it is over

	cut  time.Duration // without power
	boot time.Duration // all are up again within this
	// calls: a caller of each comes within this after the boot; 0: nobody calls.
	calls time.Duration

	outage     time.Duration // of the authorization server
	limit      int           // requests a second that the server answers; 0: any number
	retryAfter time.Duration // with the 429 for the others; 0: none

	sameAge bool // all tokens were obtained within boot, as when a fleet is new
	step    bool // without any dice: what happens when the jitter is taken out
	eager   bool // "login eager": what is due at the boot is done at the boot
}

// result counts by seconds since the power or the server was back.
type result struct {
	requests []int32 // that reached the server
	renewed  []int32
	mean     float64       // refreshes a second over the life of a token, in an undisturbed fleet
	lapsed   int           // proxies without a usable token when it was over
	healed   time.Duration // until 99 % had a usable token; -1: not before the end
	rejected int           // requests that got a 429
	knocks   float64       // requests a second in the last minute of an outage
}

// peak is the most requests within one second.
func (r *result) peak() int {
	var most int32
	for _, n := range r.requests {
		most = max(most, n)
	}
	return int(most)
}

func (r *result) ratio() float64 { return float64(r.peak()) / r.mean }

// proxy is one of them. What it decides, package schedule decides for it.
type proxy struct {
	expiry   time.Duration
	ahead    time.Duration // that its token was renewed after, or will be
	failures int32
	turn     int32 // of its latest appointment: older events are void
	alive    bool  // its token is usable, as far as has been counted
}

// event is an appointment of a proxy, or with call set somebody who needs its token.
type event struct {
	at   time.Duration
	id   int32
	turn int32
	call bool
}

// fleet simulates one scenario. The power goes, or the server, at time 0.
type fleet struct {
	scenario
	*result
	dice    *rand.Rand
	proxies []proxy
	queue   queue
	back    time.Duration // when power or server are there again
	second  time.Duration // that the server is in
	served  int           // within it
	fresh   int           // proxies with a usable token, after back
}

func simulate(sc scenario, seed uint64) *result {
	f := &fleet{scenario: sc, result: new(result), dice: rand.New(rand.NewPCG(seed, 8)), back: sc.cut + sc.outage, second: -1, proxies: make([]proxy, sc.proxies)}
	seconds := int(sc.after/time.Second) + 1
	f.requests, f.renewed = make([]int32, seconds), make([]int32, seconds)
	f.mean = float64(sc.proxies) / (0.775 * sc.lifetime.Seconds())
	f.healed = -1
	f.run()
	return f.result
}

func (f *fleet) roll() float64 {
	x := f.dice.Float64()
	if f.step {
		return 0.5
	}
	return x
}

func (f *fleet) until(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(f.dice.Int64N(int64(d)))
}

func (f *fleet) run() {
	begin := -f.warm
	for i := range f.proxies {
		// A fleet in the middle of its life: each somewhere in its cycle.
		cycle := schedule.Ahead(f.lifetime, f.roll())
		age := f.until(cycle)
		if f.sameAge {
			age = f.until(f.boot)
		}
		f.proxies[i].expiry, f.proxies[i].ahead = begin-age+f.lifetime, cycle
		f.appoint(int32(i), begin-age+cycle)
	}
	f.drain(0)
	if f.cut > 0 {
		f.queue = f.queue[:0]
		f.bootAll()
	}
	f.drain(f.back)
	for i := range f.proxies {
		f.proxies[i].alive = f.proxies[i].expiry > f.back
		if f.proxies[i].alive {
			f.fresh++
		}
	}
	f.lapsed = len(f.proxies) - f.fresh
	f.heal(f.back)
	f.drain(f.back + f.after)
}

// bootAll starts every proxy with what it has in its store.
func (f *fleet) bootAll() {
	for i := range f.proxies {
		p, up := &f.proxies[i], f.back+f.until(f.boot)
		p.failures = 0
		if f.eager {
			f.appoint(int32(i), max(up, p.expiry-f.lifetime+p.ahead))
		} else {
			f.appoint(int32(i), up+schedule.AtBoot(p.ahead, p.expiry-up, f.roll()))
		}
		if f.calls > 0 {
			f.queue.push(event{at: up + f.until(f.calls), id: int32(i), call: true})
		}
	}
}

func (f *fleet) appoint(id int32, at time.Duration) {
	p := &f.proxies[id]
	p.turn++
	f.queue.push(event{at: at, id: id, turn: p.turn})
}

func (f *fleet) drain(end time.Duration) {
	for len(f.queue) > 0 && f.queue[0].at < end {
		e := f.queue.pop()
		p := &f.proxies[e.id]
		switch {
		case e.call && (p.expiry > e.at || p.failures > 0): // there is a token, or a pause that calls do not cut short
		case e.call, e.turn == p.turn:
			f.refresh(e.id, e.at)
		}
	}
}

// refresh is one request of a proxy to the server.
func (f *fleet) refresh(id int32, now time.Duration) {
	p, bin := &f.proxies[id], int((now-f.back)/time.Second)
	if f.outage > 0 && now < f.back && now >= f.back-time.Minute {
		f.knocks += 1.0 / 60
	}
	counted := now >= f.back && bin < len(f.requests)
	if counted {
		f.requests[bin]++
	}
	var asked time.Duration
	ok := f.outage == 0 || now < 0 || now >= f.back
	if ok && f.limit > 0 && now >= f.back {
		if s := now / time.Second; s != f.second {
			f.second, f.served = s, 0
		}
		if f.served++; f.served > f.limit {
			ok, asked = false, f.retryAfter
			f.rejected++
		}
	}
	if !ok {
		p.failures++
		wait := max(schedule.Retry(int(p.failures), f.lifetime, f.roll()), schedule.NotBefore(asked, f.roll()))
		if left := p.expiry - now; left > 0 && asked < wait {
			wait = max(min(wait, left-time.Second), asked, time.Second) // as the engine: once more before it lapses
		}
		f.appoint(id, now+wait)
		return
	}
	p.failures, p.expiry, p.ahead = 0, now+f.lifetime, schedule.Ahead(f.lifetime, f.roll())
	if counted {
		f.renewed[bin]++
		if !p.alive {
			p.alive = true
			f.fresh++
			f.heal(now)
		}
	}
	f.appoint(id, now+p.ahead)
}

func (f *fleet) heal(now time.Duration) {
	if f.healed < 0 && f.fresh*100 >= 99*len(f.proxies) {
		f.healed = now - f.back
	}
}
