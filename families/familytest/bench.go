package familytest

import (
	"testing"

	"github.com/sockd/sockd/families"
)

// Bench measures each case of cfg: one small message there, and one there and back
// between two goroutines that wait for each other.
func Bench(b *testing.B, f families.Family, cfg Config) {
	for _, c := range cfg.Cases {
		s := suite{f, c}
		b.Run(c.name()+"/send and recv", s.benchSendRecv)
		b.Run(c.name()+"/ping pong", s.benchPingPong)
	}
}

func (s suite) benchSendRecv(b *testing.B) {
	x, y := s.pair(b)
	out, in := families.Msg{Data: pattern(64)}, families.Msg{Data: make([]byte, 200)}
	b.ReportAllocs()
	b.SetBytes(64)
	for b.Loop() {
		if _, err := x.Send(&out); err != nil {
			b.Fatal(err)
		}
		in.Data = in.Data[:cap(in.Data)]
		if err := families.RecvWait(b.Context(), y, &in); err != nil {
			b.Fatal(err)
		}
	}
}

func (s suite) benchPingPong(b *testing.B) {
	x, y := s.pair(b)
	echoed := make(chan error, 1)
	go func() { echoed <- s.echo(b, y) }()
	out, in := families.Msg{Data: pattern(64)}, families.Msg{Data: make([]byte, 200)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := families.SendAll(b.Context(), x, &out); err != nil {
			b.Fatal(err)
		}
		in.Data = in.Data[:cap(in.Data)]
		if err := families.RecvWait(b.Context(), x, &in); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = y.Close() // ends the echo, which is all that its error can say
	<-echoed
}

// echo sends back what it receives, until the socket closes.
func (s suite) echo(b *testing.B, sock families.Socket) error {
	m := families.Msg{Data: make([]byte, 200)}
	for {
		m.Data = m.Data[:cap(m.Data)]
		if err := families.RecvWait(b.Context(), sock, &m); err != nil {
			return err
		}
		back := families.Msg{Data: m.Data[s.c.Header:]}
		if _, err := families.SendAll(b.Context(), sock, &back); err != nil {
			return err
		}
	}
}
