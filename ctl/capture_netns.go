package ctl

import (
	"context"
	"fmt"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// The interfaces of another network namespace are captured through two sockets that
// the caller opens there with its own rights: one for packets, which becomes the
// ring, and one for rtnetlink, which tells of the interfaces.

// openNamespace opens them, and says in the parameters which descriptor is which. The
// caller closes them after the call.
func (in *captureIn) openNamespace(netns string) ([]int, error) {
	if netns == "" {
		return nil, nil
	}
	packet, err := borrow.OpenIn(netns, "packet", "raw", 0, "")
	if err != nil {
		return nil, fmt.Errorf("capture in network namespace %q: %w", netns, err)
	}
	route, err := borrow.OpenRouteIn(netns)
	if err != nil {
		closeFile(packet)
		return nil, fmt.Errorf("capture in network namespace %q: %w", netns, err)
	}
	first, second := 0, 1
	in.Netns, in.PacketSocket, in.RouteSocket = &netns, &first, &second
	return []int{packet, route}, nil
}

// capture starts a capture.
func (r request) capture(ctx context.Context, in captureIn) (Capturing, error) {
	return startCaptureOf(r, in, func(spec model.CaptureSpec) (Capturing, error) { return r.Capture(ctx, r.caller, spec) })
}

// startCaptureOf has start begin what in says. The sockets of another namespace are the
// capture's then, and closed when it is refused.
func startCaptureOf[T any](r request, in captureIn, start func(model.CaptureSpec) (T, error)) (c T, err error) {
	spec, err := in.spec()
	if err != nil {
		return c, err
	}
	if spec.Elsewhere, err = r.takeNamespace(in); err != nil {
		return c, err
	}
	c, err = start(spec)
	if err != nil && spec.Elsewhere != nil {
		closeAll([]int{spec.Elsewhere.PacketFD, spec.Elsewhere.RouteFD})
	}
	return c, err
}

// takeNamespace takes the two descriptors out of the message, or nil.
func (r request) takeNamespace(in captureIn) (*model.Namespace, error) {
	if in.PacketSocket == nil && in.RouteSocket == nil && in.Netns == nil {
		return nil, nil
	}
	packet, err := r.takeFileOf("packet_socket", in.PacketSocket)
	if err != nil {
		return nil, err
	}
	route, err := r.takeFileOf("route_socket", in.RouteSocket)
	if err == nil && (packet == model.NoFD || route == model.NoFD) {
		err = fmt.Errorf("netns: want packet_socket and route_socket, both: %w", families.ErrSyntax)
	}
	if err != nil {
		closeFile(packet)
		closeFile(route)
		return nil, err
	}
	return &model.Namespace{Name: orZero(in.Netns), PacketFD: packet, RouteFD: route}, nil
}
