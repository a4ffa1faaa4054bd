package ctl

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

type relayAddIn struct {
	Name           *string        `json:"name,omitempty"`
	From           string         `json:"from"`
	To             []string       `json:"to"`
	Settings       *relaySettings `json:"settings,omitempty"`
	FromDescriptor *int           `json:"from_descriptor,omitempty"`
	Dirs           []relayDir     `json:"dirs,omitempty"`
}

type relayReplaceIn struct {
	Name           string         `json:"name"`
	From           string         `json:"from"`
	To             []string       `json:"to"`
	Settings       *relaySettings `json:"settings,omitempty"`
	FromDescriptor *int           `json:"from_descriptor,omitempty"`
	Dirs           []relayDir     `json:"dirs,omitempty"`
}

var _ = addMethod(unary("io.sockd.Relay.Add", func(ctx context.Context, r request, in relayAddIn) (relayOut, error) {
	return r.startRelay(ctx, in, false)
}))

var _ = addMethod(unary("io.sockd.Relay.Replace", func(ctx context.Context, r request, in relayReplaceIn) (relayOut, error) {
	return r.startRelay(ctx, relayAddIn{Name: &in.Name, From: in.From, To: in.To, Settings: in.Settings, FromDescriptor: in.FromDescriptor, Dirs: in.Dirs}, true)
}))

func (r request) startRelay(ctx context.Context, in relayAddIn, replace bool) (relayOut, error) {
	spec, err := r.relaySpec(in)
	if err != nil {
		return relayOut{}, err
	}
	relay, err := r.RelayAdd(ctx, r.caller, spec, replace)
	if err != nil {
		closeFile(spec.FromFD)
		closeDirs(spec.ToDirs)
		return relayOut{}, err
	}
	return relayOut{relay}, nil
}

// relaySpec reads the parameters. On success the descriptors are the caller's.
func (r request) relaySpec(in relayAddIn) (model.RelaySpec, error) {
	spec := model.RelaySpec{Name: orZero(in.Name), FromFD: model.NoFD, Owner: r.caller.Owner(), Groups: r.caller.Groups}
	if in.Name != nil && !model.ValidName(spec.Name) {
		return model.RelaySpec{}, badName(spec.Name)
	}
	if len(in.To) == 0 {
		return model.RelaySpec{}, fmt.Errorf("relay of %s: it has no TO: %w", in.From, families.ErrSyntax)
	}
	if err := orZero(in.Settings).apply(&spec); err != nil {
		return model.RelaySpec{}, err
	}
	var err error
	if spec.From, err = families.ParseEndpoint(in.From); err != nil {
		return model.RelaySpec{}, err
	}
	if spec.To, err = endpoints(in.To); err != nil {
		return model.RelaySpec{}, err
	}
	if spec.ToDirs, err = r.takeDirs(in.Dirs, len(spec.To)); err != nil {
		return model.RelaySpec{}, err
	}
	if spec.FromFD, err = r.takeFileOf("from_descriptor", in.FromDescriptor); err != nil {
		closeDirs(spec.ToDirs)
		return model.RelaySpec{}, err
	}
	return spec, nil
}

func badName(name string) error {
	return &families.SyntaxError{What: "name", Text: name, Why: "want a letter or _, then letters, digits, _ . or -, at most 64"}
}

const relayLong = `FROM and TO are endpoints, NETWORK:ADDRESS[,option[=value]]...: tcp:127.0.0.1:80, unix:/run/app.sock, udp:[::1]:53, packet:eth0, id:7. FROM is bound, and listens where its type can; TO is dialled for each session. With several TOs --balance chooses; a TO with the option backup is taken when the others fail. A TO with the option retry=D is tried again for that long, with pauses that grow, when nobody is there; without it a session whose backends all fail ends at once.

framing= gives a stream message borders, and so joins it to datagrams, or to another framed stream: u16be and u32be put the length of a message in front of it, lf a line feed behind it. With --balance fanout every message goes to all TOs; what happens when one of them is slow is its own option loss=: drop-oldest (what it is without), block, which makes all wait (clients of a datagram FROM, which share its socket, for a tenth of a second at most: then messages are dropped as full), or disconnect; queue=N messages may wait for it (256).

proxy=v1 or v2 makes TO begin with a PROXY protocol header that says who the client is; proxy=accept makes FROM want one. On udp each datagram has one, of version 2.

--allow lets in whom it names, and nobody else: networks and addresses, on unix and on TCP over the loopback also the user uid:U or a member of the group gid:G. It asks who made the connection, never what a PROXY header says. Of a TCP client the kernel tells the user and not the groups: they are those of the user database, which is read again every ten seconds. Who is refused is reset, its datagrams are dropped, and both are counted as denied. A name is looked up where it is typed, and kept as its number.

--rate holds all sessions of the relay together to that many bytes a second in each direction, beyond a burst of a tenth of a second or 64k; clients take turns. --pass rights has descriptors that come with unix messages passed on, which takes unix on both sides; without it they are closed, and counted as files. Credentials are not passed on: the other side sees sockd's own.

An id: as TO is one connection and serves one client: from then on the relay takes nobody else (a FROM that listens is closed), is draining, and ends with its session. A packet: FROM has one session, too, but lasts: while an interface is not there the relay is waiting, and goes on when one of that name is.

--max-conns bounds the sessions: beyond it new connections wait in FROM's queue. A FROM of datagrams ends the session that was used least recently instead (evicted in its drops).

A unix FROM is bound by sockd-ctl with its user's rights, so the file is that user's; its options mode=, user=, group= and backlog= are applied at once. For a unix TO the daemon gets the directory, as the user can open it now, and finds the name in it at each dial.`

var _ = register(Verb{
	Name:  "relay add",
	Group: GroupFlows,
	Args:  "[NAME] FROM TO...",
	Short: "join two endpoints, and print the relay's name and address",
	Long: `Starts a relay, and prints its NAME and the address that it is bound to: with port 0 the one that the system chose. Without NAME it is called r and its ID. A name or address that is taken is exit 7.

` + relayLong,
	Examples: []string{
		"sockd-ctl relay add web tcp:127.0.0.1:8080 unix:/run/app.sock",
		"sockd-ctl relay add tcp:127.0.0.1:0 tcp:10.0.0.1:80 tcp:10.0.0.2:80 --balance least",
		"sockd-ctl relay add dns udp::53 udp:9.9.9.9:53 --idle 10s --permanent",
		"sockd-ctl relay add unix:/tmp/in.sock,mode=660,group=www tcp:localhost:9000",
		"sockd-ctl relay add db tcp:127.0.0.1:5432 unix:/run/pg/s --allow uid:1000 --rate 10M",
		"sockd-ctl relay add tunnel udp:127.0.0.1:53 tcp:10.0.0.1:53,framing=u16be",
		"sockd-ctl relay add log udp::514 unixgram:/dev/log udp:10.0.0.9:514,loss=drop-oldest --balance fanout",
		"sockd-ctl relay add wire packet:eth1 packet:tap0   # a cable between two network segments",
	},
	Complete: []string{"network"},
	Setup: func(fs *flag.FlagSet) Run {
		flags := newRelayFlags(fs, false)
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("relay add", args, 2, -1); err != nil {
				return err
			}
			in := relayAddIn{Settings: flags.settings()}
			if !strings.Contains(args[0], ":") {
				if !model.ValidName(args[0]) {
					return badName(args[0])
				}
				in.Name, args = &args[0], args[1:]
			}
			if err := wantTargets("relay add", args); err != nil {
				return err
			}
			return addRelay(ctx, e, in, args)
		}
	},
})

func wantTargets(verb string, args []string) error {
	if len(args) < 2 {
		return &UsageError{Verb: verb, Why: "want FROM and at least one TO", Hint: "sockd-ctl " + verb + " " + verbs[verb].Args}
	}
	return nil
}

func addRelay(ctx context.Context, e *Env, in relayAddIn, args []string) error {
	var o opened
	defer o.close()
	if err := o.open(args, ""); err != nil {
		return err
	}
	in.From, in.To, in.FromDescriptor, in.Dirs = o.from, o.to, o.fromFile, o.dirs
	var out relayOut
	if err := e.call(ctx, "io.sockd.Relay.Add", in, &out, o.files...); err != nil {
		o.refused(err)
		return err
	}
	return printObject(e, out.Relay, relayAddresses(out.Relay))
}

// open opens FROM TO... TO comes first, so that a relay that is refused here has
// not bound a path.
func (o *opened) open(args []string, keep string) error {
	if err := o.openTo(args[1:]); err != nil {
		return err
	}
	return o.openFrom(args[0], keep)
}

// relayAddresses prints the name with each address that the relay is bound to.
func relayAddresses(r model.Relay) func(io.Writer) error {
	return func(w io.Writer) error {
		local := r.Local
		if len(local) == 0 {
			local = []string{r.From}
		}
		for _, l := range local {
			if _, err := fmt.Fprintln(w, r.Name, cell(l)); err != nil {
				return err
			}
		}
		return nil
	}
}

var _ = register(Verb{
	Name:  "relay replace",
	Group: GroupFlows,
	Args:  "NAME FROM TO...",
	Short: "add a relay, or make the one of that name exactly this",
	Long: `Adds the relay if there is none of that NAME. If there is, it becomes exactly this: what is not given has its default. With the same FROM the listener never closes and sessions go on.

` + relayLong,
	Examples: []string{
		"sockd-ctl relay replace web tcp:127.0.0.1:8080 unix:/run/app2.sock   # new sessions go to app2",
	},
	Complete: []string{"relay", "network"},
	Setup: func(fs *flag.FlagSet) Run {
		flags := newRelayFlags(fs, false)
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("relay replace", args, 3, -1); err != nil {
				return err
			}
			if !model.ValidName(args[0]) {
				return badName(args[0])
			}
			return replaceRelay(ctx, e, relayReplaceIn{Name: args[0], Settings: flags.settings()}, args[1:])
		}
	},
})

// replaceRelay leaves a unix FROM unbound where the relay listens on it already.
// If the daemon wants it after all, because that listener is gone, it is bound.
func replaceRelay(ctx context.Context, e *Env, in relayReplaceIn, args []string) error {
	old, err := e.specOf(ctx, in.Name)
	if err != nil && !errors.Is(err, families.ErrNotFound) {
		return err
	}
	var o opened
	defer o.close()
	if err := o.open(args, old.From); err != nil {
		return err
	}
	var out relayOut
	call := func() error {
		in.From, in.To, in.FromDescriptor, in.Dirs = o.from, o.to, o.fromFile, o.dirs
		return e.call(ctx, "io.sockd.Relay.Replace", in, &out, o.files...)
	}
	err = call()
	if mustBorrow(err) && o.fromFile == nil {
		if err := o.openFrom(args[0], ""); err != nil {
			return err
		}
		err = call()
	}
	if err != nil {
		o.refused(err)
		return err
	}
	return printObject(e, out.Relay, relayAddresses(out.Relay))
}
