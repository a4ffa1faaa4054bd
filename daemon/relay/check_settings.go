package relay

import (
	"fmt"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// What can be known of a relay's settings without a socket: who may come in, what
// goes along with messages, and what belongs to a fanout alone.

func checkAllowCount(rules []model.Allow) error {
	if len(rules) > model.MaxAllow {
		return &families.SyntaxError{What: "allow", Text: fmt.Sprintf("%d rules", len(rules)), Why: fmt.Sprintf("want %d at most", model.MaxAllow), Hint: "join networks, or let a firewall do it"}
	}
	return nil
}

func checkRate(rate int64) error {
	if rate < 0 {
		return &families.SyntaxError{What: "rate", Text: fmt.Sprint(rate), Why: "want bytes a second, or 0 for no limit"}
	}
	return nil
}

func checkPassWord(pass string) error {
	if pass != "" && pass != model.PassRights {
		return &families.SyntaxError{What: "pass", Text: pass, Why: "want " + model.PassRights}
	}
	return nil
}

// checkAllow refuses rules that could match nobody who comes to FROM, since that is
// not what the user meant. What id: and fd: are is asked again when they are taken.
func checkAllow(from side, rules []model.Allow) error {
	if len(rules) == 0 || from.kind == kindUnknown {
		return nil
	}
	if from.kind == kindPacket {
		return &ReasonError{Reason: fmt.Sprintf("%s: frames come from nobody whom allow could name", from.word), Next: "leave it out"}
	}
	for _, a := range rules {
		prefix := a.Kind == model.AllowPrefix
		switch {
		case prefix && from.unix:
			return &ReasonError{Reason: fmt.Sprintf("allow %s: who comes to %s has no address", a, from.word), Next: "want uid:U or gid:G"}
		case !prefix && !from.unix && from.kind == kindDgram:
			return &ReasonError{Reason: fmt.Sprintf("allow %s: nobody tells which user sent a datagram to %s", a, from.word), Next: "want networks or addresses"}
		}
	}
	return nil
}

// checkPass: descriptors go with unix messages only. What id: and fd: are is asked
// again when they are taken.
func checkPass(spec model.RelaySpec) error {
	if spec.Pass == "" {
		return nil
	}
	for _, e := range append([]families.Endpoint{spec.From}, spec.To...) {
		if !isUnix(e.Network) && e.Network != families.NetworkID && e.Network != families.NetworkFD && e.Network != "" {
			return passReason(e.Network)
		}
		if hasOption(e, "framing") {
			return &ReasonError{Reason: fmt.Sprintf("pass rights: %s has framing=, and a frame cannot carry descriptors", e), Next: "leave out one or the other"}
		}
	}
	return nil
}

func passReason(word string) error {
	return &ReasonError{Reason: fmt.Sprintf("pass rights: %s cannot carry descriptors", word), Next: "they go from unix to unix: unix, unixgram, unixpacket"}
}

// checkFrom looks again at FROM, now that its socket is there.
func checkFrom(from side, spec model.RelaySpec) error {
	if err := checkAlone(from); err != nil {
		return err
	}
	if spec.Pass != "" && !from.unix {
		return passReason(from.word)
	}
	return checkAllow(from, spec.Allow)
}

// checkArrival refuses rules for a FROM whose one peer is there already.
func checkArrival(from side, state families.State, rules []model.Allow) error {
	if len(rules) == 0 || state != families.Connected && state != families.HalfClosed {
		return nil
	}
	return &ReasonError{Reason: fmt.Sprintf("%s is connected, so nobody comes whom allow could let in", from.word), Next: "leave it out"}
}

// checkFanoutFrom refuses what the clients of a fanout cannot say.
func checkFanoutFrom(balance string, from side) error {
	if balance != balanceFanout || from.proxy == "" || from.kind != kindDgram {
		return nil
	}
	return &ReasonError{Reason: fmt.Sprintf("balance fanout: the datagrams that come to %s have no PROXY header there", from.word), Next: "leave out proxy=accept"}
}

// checkFanout refuses a branch that has no message borders.
func checkFanout(balance string, to side) error {
	if balance != balanceFanout || to.kind == kindUnknown || to.messages() {
		return nil
	}
	return &ReasonError{Reason: fmt.Sprintf("balance fanout: %s is a stream without message borders", to.word), Next: "give it some with framing=u16be, a length in front of each message"}
}

// checkBranch: a fanout is of messages, to all TO alike; loss= and queue= are of its
// branches.
func checkBranch(balance string, to families.Endpoint, k kind) error {
	if err := checkFanout(balance, sideOf(to, k)); err != nil {
		return err
	}
	for i, o := range to.Options {
		switch {
		case balance == balanceFanout && o.Name == "backup":
			return optionError(to, i, "with balance fanout every TO gets every message, and none is a backup")
		case balance == balanceFanout && o.Name == "proxy":
			return optionError(to, i, "with balance fanout a TO is dialled again within a session, and is not told of the client")
		case balance != balanceFanout && (o.Name == "loss" || o.Name == "queue"):
			return optionError(to, i, fmt.Sprintf("%q is for balance fanout", o.Name))
		}
	}
	return nil
}

// checkDurable: only the bytes of plain streams are in the kernel at every moment.
func checkDurable(set families.Set, spec model.RelaySpec) error {
	switch spec.Durable {
	case "":
		return nil
	case model.DurableYes, model.DurablePrefer:
	default:
		return &families.SyntaxError{What: "durable", Text: spec.Durable, Why: "want " + model.DurableYes + " or " + model.DurablePrefer}
	}
	if spec.Pass != "" {
		return &ReasonError{Reason: "durable: descriptors that are passed on would die with sockd on their way", Next: "leave out pass or durable"}
	}
	for _, e := range append([]families.Endpoint{spec.From}, spec.To...) {
		if err := checkDurableEnd(set, e); err != nil {
			return err
		}
	}
	return nil
}

func checkDurableEnd(set families.Set, e families.Endpoint) error {
	const next = "sessions outlive sockd from tcp and unix to tcp and unix, as they are"
	if e.Network == families.NetworkID || e.Network == families.NetworkFD {
		return &ReasonError{Reason: fmt.Sprintf("durable: %s is a socket that others opened", e), Next: "name its address"}
	}
	if k, ok := networkKind(set, e); ok && k != kindStream {
		return &ReasonError{Reason: fmt.Sprintf("durable: %s has messages, and one in hand would be lost", e), Next: next}
	}
	for _, name := range []string{"framing", "proxy"} {
		if hasOption(e, name) {
			return &ReasonError{Reason: fmt.Sprintf("durable: %s has %s=, which takes bytes into memory", e, name), Next: next}
		}
	}
	return nil
}
