package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

const (
	herdConnections = 64
	endpointDelay   = 200 * time.Millisecond
)

// herder is a server under load whose token is refreshed all the time, or never.
type herder struct {
	name   string
	slices []lab.Slice
}

// refreshing measures whether anybody waits for a refresh.
func (b *bench) refreshing(ctx context.Context, r *results) error {
	// Ours refreshes after 70 to 85 % of 2.4 s, and x/oauth2 one second before the end of 3 s: each about every two.
	slow := flowtest.Response{Pass: true, Delay: endpointDelay}
	shorter := slow
	shorter.Edit = flowtest.EditJSON(func(body map[string]any) { body["expires_in"] = json.RawMessage("2.4") })
	ours, err := b.authorizationServer(flowtest.Config{AccessTokenLifetime: 3 * time.Second}, shorter)
	if err != nil {
		return err
	}
	theirs, err := b.authorizationServer(flowtest.Config{AccessTokenLifetime: 3 * time.Second}, slow)
	if err != nil {
		return err
	}
	herders := []struct {
		name, issuer string
		oauth2       bool
	}{
		{"device_flow, no refreshing", b.issuer, false},
		{"device_flow, refreshing", ours, false},
		{"oauth2.Transport, no refreshing", b.issuer, true},
		{"oauth2.Transport, refreshing", theirs, true},
	}
	processes, loads := make([]*lab.Process, len(herders)), make([]*lab.Load, len(herders))
	for i, h := range herders {
		folder, err := b.place(fmt.Sprint("herd", i))
		if err != nil {
			return err
		}
		address, err := lab.FreeAddress()
		if err != nil {
			return err
		}
		file, config, argv := "Caddyfile", caddyfile(address, deviceFlow(b.guarded, h.issuer)), runCaddy(b.full)
		if h.oauth2 {
			file, argv = "", []string{b.oauth2, "-listen", address, "-upstream", "http://" + b.guarded, "-issuer", h.issuer, "-early", "1s"}
		}
		if processes[i], err = b.start(folder, nil, func() error { return lab.Once(address) }, file, config, argv...); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		if loads[i], err = lab.Dial(address, herdConnections); err != nil {
			return err
		}
		b.stops = append(b.stops, loads[i].Close)
		r.herders = append(r.herders, &herder{name: h.name})
	}
	for n := range b.plan.herds + 1 {
		for i := range herders {
			if err := ctx.Err(); err != nil {
				return err
			}
			at := (i + n) % len(herders)
			length := b.plan.herd
			if n == 0 {
				length = b.plan.slice // for warming up
			}
			s, err := b.turn(processes[at], loads[at], length)
			if err == nil && s.Failed > 0 {
				err = fmt.Errorf("%d requests failed", s.Failed)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", herders[at].name, err)
			}
			if n > 0 {
				r.herders[at].slices = append(r.herders[at].slices, s)
			}
		}
	}
	return nil
}
