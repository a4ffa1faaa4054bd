package ctl

import (
	"context"
	"fmt"
	"strings"

	"github.com/sockd/sockd/families/model"
)

const interfacesMethod = "io.sockd.Capture.Interfaces"

type interfacesOut struct {
	Interfaces []model.Interface `json:"interfaces"`
}

var _ = addMethod(unary(interfacesMethod, func(ctx context.Context, r request, _ struct{}) (interfacesOut, error) {
	list, err := r.Interfaces(ctx, r.caller)
	return interfacesOut{notNil(list)}, err
}))

// Interfaces asks the daemon what can be captured on: any first, then by index.
func (e *Env) Interfaces(ctx context.Context) ([]model.Interface, error) {
	var out interfacesOut
	err := e.call(ctx, interfacesMethod, nil, &out)
	return out.Interfaces, err
}

// listInterfaces is capture -D: a line each as tcpdump -D has it, or JSON.
func listInterfaces(ctx context.Context, e *Env, args []string) error {
	if err := wantArgs("capture", args, 0, 0); err != nil {
		return err
	}
	list, err := e.Interfaces(ctx)
	if err != nil {
		return err
	}
	if e.wantsJSON() || len(e.Columns) > 0 {
		return printList(e, list, nil)
	}
	for n, i := range list {
		if _, err := fmt.Fprintf(e.Stdout, "%d.%s%s\n", n+1, visible(i.Name), interfaceWords(i)); err != nil {
			return err
		}
	}
	return nil
}

// interfaceWords are what is said of an interface behind its name.
func interfaceWords(i model.Interface) string {
	text := ""
	if i.Index == 0 {
		text = " (all interfaces together)"
	}
	var words []string
	for _, w := range []struct {
		is   bool
		word string
	}{{i.Up, "Up"}, {i.Running, "Running"}, {i.Loopback, "Loopback"}} {
		if w.is {
			words = append(words, w.word)
		}
	}
	if len(words) == 0 {
		return text
	}
	return text + " [" + strings.Join(words, ", ") + "]"
}
