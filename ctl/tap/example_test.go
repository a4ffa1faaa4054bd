package tap_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/sockd/sockd/ctl/tap"
)

// Count the bytes of each interface for ten seconds.
func Example() {
	ctx := context.Background()
	t, err := tap.Open(ctx, tap.Options{Source: "any", Filter: "tcp port 443", Snaplen: 96, Duration: 10 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	bytes := map[string]int{}
	for {
		p, err := t.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		bytes[p.Interface.Name] += p.Len
	}
	for name, n := range bytes {
		fmt.Printf("%s: %d bytes\n", name, n)
	}
	if s := t.Stats(); s.Dropped > 0 {
		log.Printf("%d packets were lost, %d of them because this program was too slow", s.Dropped, s.DroppedSubscriber)
	}
}
