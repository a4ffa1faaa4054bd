package daemon

import (
	"context"
	"net"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/links"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// Interfaces lists what can be captured on: any first, then by index.
func (d *Daemon) Interfaces(ctx context.Context, _ model.Caller) ([]model.Interface, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	list, err := links.List()
	if err != nil {
		return nil, err
	}
	running := runningInterfaces()
	out := []model.Interface{{Name: ring.Any, LinkType: pcapng.Ethernet.String(), Up: true, Running: true}}
	for _, i := range list {
		out = append(out, model.Interface{
			Index: int64(i.Index), Name: i.Name, LinkType: ring.LinkOf(i.Hardware).String(), MTU: int64(i.MTU),
			Up: i.Up, Running: running[i.Index], Loopback: i.Loopback, MAC: i.Address.String(),
		})
	}
	return out, nil
}

// runningInterfaces are those that work, by index. It is for people to look at: when
// they cannot be had nothing is said to work.
func runningInterfaces() map[int]bool {
	running := map[int]bool{}
	list, err := net.Interfaces()
	if err != nil {
		return running
	}
	for _, i := range list {
		running[i.Index] = i.Flags&net.FlagRunning != 0
	}
	return running
}
