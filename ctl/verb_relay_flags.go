package ctl

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sockd/sockd/families/model"
)

// relayFlags are the flags that are a relay's settings.
type relayFlags struct {
	given relaySettings
	reset []string // those given as "default"
	any   bool
}

// defaultWord takes a setting's value back, in relay set.
const defaultWord = "default"

// newRelayFlags declares the flags. canReset is whether "default" takes a value back.
func newRelayFlags(fs *flag.FlagSet, canReset bool) *relayFlags {
	f := &relayFlags{}
	add := func(name, usage string, set func(string) error) {
		fs.Func(name, usage, func(s string) error {
			f.any = true
			if canReset && s == defaultWord {
				f.reset = append(f.reset, wireName(name))
				return nil
			}
			return set(s)
		})
	}
	add("max-conns", "sessions at a time, `N`: beyond it connections wait, and of datagrams the least recently used one makes room (10000)", f.maxConns)
	add("connect-timeout", "how long dialling TO may take, `D` (10s)", durationSetting(&f.given.ConnectTimeout, refuseZero))
	add("idle", "end a session without traffic after `D` (none; 60s for datagrams)", durationSetting(&f.given.Idle, refuseZero))
	add("half-close", "end a session `D` after one side has ended (none)", durationSetting(&f.given.HalfClose, noBound))
	add("balance", "which TO is next, `HOW`: roundrobin, least or failover; fanout sends every message to all of them (roundrobin)", f.balance)
	add("allow", "let in `WHO`: a network or address, uid:U or gid:G; can be repeated (everybody)", f.allow)
	add("rate", "pass at most `SIZE` a second in each direction, all sessions together (no limit)", f.rate)
	add("pass", "pass on `WHAT` comes with unix messages: rights, the descriptors (nothing)", f.pass)
	if !canReset {
		fs.BoolFunc("permanent", "keep it over a stop and a reboot", f.permanent)
		fs.BoolFunc("durable", "sessions go on when sockd is killed, restarted or upgraded; where no more can be held, one is refused, or with --durable=prefer goes on without", f.durable)
	}
	return f
}

func (f *relayFlags) permanent(s string) error {
	on, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("takes no value")
	}
	f.any, f.given.Permanent = true, &on
	return nil
}

func (f *relayFlags) durable(s string) error {
	switch on, err := strconv.ParseBool(s); {
	case s == model.DurablePrefer:
	case s == model.DurableYes || err == nil && on:
		s = model.DurableYes
	case s == "no" || err == nil:
		s = ""
	default:
		return errors.New("want no value, yes, no or prefer")
	}
	f.any, f.given.Durable = true, &s
	return nil
}

// wireName is the setting that a flag sets.
func wireName(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

func (f *relayFlags) maxConns(s string) error {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 || n > maxRelayConns {
		return errors.New("want a number from 1")
	}
	f.given.MaxConns = &n
	return nil
}

// allow adds one rule. A name becomes a number here, where it was typed.
func (f *relayFlags) allow(s string) error {
	a, err := model.ParseAllow(s)
	if err != nil {
		return err
	}
	f.given.Allow = append(f.given.Allow, a.String())
	return nil
}

func (f *relayFlags) rate(s string) error {
	n, err := model.ParseSize(s)
	if err == nil && n == 0 {
		err = errors.New("want at least a byte a second")
	}
	if err != nil {
		return err
	}
	f.given.Rate = &n
	return nil
}

func (f *relayFlags) pass(s string) error {
	if s != model.PassRights {
		return errors.New("want " + model.PassRights)
	}
	f.given.Pass = &s
	return nil
}

var balances = []string{"roundrobin", "least", "failover", "fanout"}

func (f *relayFlags) balance(s string) error {
	if !slices.Contains(balances, s) {
		return fmt.Errorf("want one of %s", strings.Join(balances, ", "))
	}
	f.given.Balance = &s
	return nil
}

// durationSetting reads a D into a setting; zero says what 0 becomes.
func durationSetting(to **int64, zero func() (time.Duration, error)) func(string) error {
	return func(s string) error {
		d, err := model.ParseDuration(s)
		if err == nil && d == 0 {
			d, err = zero()
		}
		if err != nil {
			return err
		}
		ns := int64(d)
		*to = &ns
		return nil
	}
}

func refuseZero() (time.Duration, error) {
	return 0, errors.New("want a duration above 0, or none")
}

// noBound is 0 where the default is none.
func noBound() (time.Duration, error) { return 0, nil }

// settings are the flags for the wire, nil when none was given.
func (f *relayFlags) settings() *relaySettings {
	if !f.any {
		return nil
	}
	return &f.given
}

// words are settings as the flags that make them.
func (s relaySettings) words() []string {
	var w []string
	if s.MaxConns != nil {
		w = append(w, "--max-conns", fmt.Sprint(*s.MaxConns))
	}
	for _, d := range []struct {
		flag string
		ns   *int64
	}{{"--connect-timeout", s.ConnectTimeout}, {"--idle", s.Idle}, {"--half-close", s.HalfClose}} {
		if d.ns != nil {
			w = append(w, d.flag, model.FormatDuration(time.Duration(*d.ns)))
		}
	}
	if s.Balance != nil {
		w = append(w, "--balance", *s.Balance)
	}
	for _, rule := range s.Allow {
		w = append(w, "--allow", rule)
	}
	if s.Rate != nil {
		w = append(w, "--rate", model.FormatSize(*s.Rate))
	}
	if s.Pass != nil {
		w = append(w, "--pass", *s.Pass)
	}
	if s.Durable != nil && *s.Durable != "" {
		w = append(w, "--durable="+*s.Durable)
	}
	if s.Permanent != nil && *s.Permanent {
		w = append(w, "--permanent")
	}
	return w
}
