package varlink

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Info is what a service says of itself (org.varlink.service.GetInfo).
type Info struct {
	Vendor     string   `json:"vendor"`
	Product    string   `json:"product"`
	Version    string   `json:"version"`
	URL        string   `json:"url"`
	Interfaces []string `json:"interfaces"` // sorted
}

// ServiceInterface is the interface that every service has.
const ServiceInterface = "org.varlink.service"

//go:embed org.varlink.service.varlink
var serviceDescription string

// registry is what a server serves.
type registry struct {
	mu         sync.RWMutex // guards interfaces
	interfaces map[string]*served
}

// served is one interface of a registry. It does not change.
type served struct {
	text    string
	desc    *Interface
	methods map[string]Method // by qualified name
}

func (r *registry) add(description string, methods []Method) error {
	desc, err := ParseInterface(description)
	if err != nil {
		return err
	}
	s := &served{text: description, desc: desc, methods: map[string]Method{}}
	for _, m := range methods {
		if err := s.add(m); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.interfaces[desc.Name] != nil {
		return fmt.Errorf("register interface %s: it is registered already", desc.Name)
	}
	if r.interfaces == nil {
		r.interfaces = map[string]*served{}
	}
	r.interfaces[desc.Name] = s
	return nil
}

func (s *served) add(m Method) error {
	iface, name := splitMethod(m.Name)
	if iface != s.desc.Name || s.desc.Method(name) == nil {
		return fmt.Errorf("register method %s: interface %s has no such method", m.Name, s.desc.Name)
	}
	if s.methods[m.Name].Serve != nil {
		return fmt.Errorf("register method %s: it is registered already", m.Name)
	}
	if m.Serve == nil {
		return fmt.Errorf("register method %s: nothing serves it", m.Name)
	}
	s.methods[m.Name] = m
	return nil
}

// splitMethod cuts a qualified name at its last dot.
func splitMethod(qualified string) (iface, name string) {
	dot := strings.LastIndexByte(qualified, '.')
	if dot < 0 {
		return "", qualified
	}
	return qualified[:dot], qualified[dot+1:]
}

// find gives the method, or the error that is answered.
func (r *registry) find(qualified string) (Method, error) {
	iface, name := splitMethod(qualified)
	s := r.get(iface)
	if s == nil {
		return Method{}, InterfaceNotFound(iface)
	}
	if s.desc.Method(name) == nil {
		return Method{}, MethodNotFound(qualified)
	}
	m, ok := s.methods[qualified]
	if !ok {
		return Method{}, MethodNotImplemented(qualified)
	}
	return m, nil
}

func (r *registry) get(iface string) *served {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.interfaces[iface]
}

func (r *registry) names() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	names := make([]string, 0, len(r.interfaces))
	for name := range r.interfaces {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (s *Server) registerService() {
	err := s.Register(serviceDescription,
		Method{Name: ServiceInterface + ".GetInfo", Serve: s.getInfo},
		Method{Name: ServiceInterface + ".GetInterfaceDescription", Serve: s.getInterfaceDescription})
	if err != nil {
		panic("varlink: " + err.Error()) // the embedded text is part of the program
	}
}

func (s *Server) getInfo(_ context.Context, c *ServerCall) error {
	if err := c.Decode(&struct{}{}); err != nil {
		return err
	}
	info := s.Info
	info.Interfaces = s.registry.names()
	return c.Reply(info)
}

func (s *Server) getInterfaceDescription(_ context.Context, c *ServerCall) error {
	var in struct {
		Interface string `json:"interface"`
	}
	if err := c.Decode(&in); err != nil {
		return err
	}
	found := s.registry.get(in.Interface)
	if found == nil {
		return InterfaceNotFound(in.Interface)
	}
	return c.Reply(struct {
		Description string `json:"description"`
	}{found.text})
}
