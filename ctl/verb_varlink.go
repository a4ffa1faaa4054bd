package ctl

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"unicode/utf8"

	"github.com/sockd/sockd/ctl/varlink"
)

var _ = register(Verb{
	Name:  "varlink call",
	Group: GroupOther,
	Args:  "METHOD [JSON]",
	Short: "make a call of the raw protocol, for scripts",
	Long: `Calls a Varlink method with the parameters JSON, an object ({} when it is left out), and prints the reply's parameters as JSON. An error is printed and ends it as that of any verb does. With --more every reply is a line. --timeout bounds the whole (exit 6).
org.varlink.service.GetInfo lists the interfaces, org.varlink.service.GetInterfaceDescription describes one. Methods that upgrade the connection (attach, capture) have verbs of their own.`,
	Examples: []string{
		"sockd-ctl varlink call org.varlink.service.GetInfo",
		`sockd-ctl varlink call io.sockd.Manager.Open '{"family":"inet","type":"stream"}'`,
		"sockd-ctl varlink call --more io.sockd.Manager.Watch",
	},
	Setup: func(fs *flag.FlagSet) Run {
		more := fs.Bool("more", false, "ask for several replies, and print each as it comes")
		return func(ctx context.Context, e *Env, args []string) error {
			if err := wantArgs("varlink call", args, 1, 2); err != nil {
				return err
			}
			parameters := json.RawMessage("{}")
			if len(args) == 2 {
				parameters = json.RawMessage(args[1])
			}
			if err := checkCall(args[0], parameters); err != nil {
				return err
			}
			return callRaw(ctx, e, args[0], parameters, *more)
		}
	},
})

// checkCall refuses here what is no call: a service that is sent one ends the
// connection without an answer.
func checkCall(method string, parameters json.RawMessage) error {
	if !varlink.ValidMethod(method) {
		return &UsageError{Verb: "varlink call", Why: fmt.Sprintf("%q is no method: want INTERFACE.Method", method), Hint: "sockd-ctl varlink call org.varlink.service.GetInfo"}
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(parameters, &object); err != nil || object == nil || !utf8.Valid(parameters) {
		return &UsageError{Verb: "varlink call", Why: fmt.Sprintf("parameters %q: want one JSON object", parameters), Hint: `sockd-ctl varlink call METHOD '{"name":"value"}'`}
	}
	return nil
}

func callRaw(ctx context.Context, e *Env, method string, parameters json.RawMessage, more bool) error {
	ctx, cancel := e.bound(ctx, "")
	defer cancel()
	c, err := e.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if more {
		ctx, stop := e.whileRead(ctx)
		defer stop()
		return c.More(ctx, method, parameters, func(raw json.RawMessage) error { return printRaw(e, raw) })
	}
	var reply json.RawMessage
	if err := c.Call(ctx, method, parameters, &reply); err != nil {
		return err
	}
	return printRaw(e, reply)
}

// printRaw prints a reply's parameters, which a reply may lack.
func printRaw(e *Env, raw json.RawMessage) error {
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	return e.printJSON(raw)
}
