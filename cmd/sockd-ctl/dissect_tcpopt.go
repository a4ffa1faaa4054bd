package main

// The options of TCP (RFC 9293 and what it names).
const (
	optEnd       = 0
	optNop       = 1
	optMSS       = 2
	optScale     = 3
	optSackOK    = 4
	optSack      = 5
	optEcho      = 6
	optEchoReply = 7
	optStamps    = 8
	optCC        = 11
	optCCNew     = 12
	optCCEcho    = 13
	optMD5       = 19
	optSCPS      = 20
	optTimeout   = 28
	optAO        = 29
	optMPTCP     = 30
	optFastOpen  = 34
	optTrial     = 254 // with a number of what is tried (RFC 6994)

	trialFastOpen = 0xf989
	md5Size       = 16
)

var tcpOptionNames = names{
	optEnd: "eol", optNop: "nop", optMSS: "mss", optScale: "wscale", optSackOK: "sackOK", optSack: "sack", optEcho: "echo", optEchoReply: "echoreply",
	optStamps: "TS", optCC: "cc", optCCNew: "ccnew", optCCEcho: "", optMD5: "md5", optSCPS: "scps", optTimeout: "uto", optAO: "tcp-ao", optMPTCP: "mptcp",
	optFastOpen: "tfo", optTrial: "exp",
}

// tcpOptions writes options of which left bytes were on the wire; false when they
// contradict themselves, or are cut.
func (p *printer) tcpOptions(o []byte, left int, of optionInHand) bool {
	p.say(", options [")
	for between := ""; left > 0; between = "," {
		p.say(between)
		kind, size := int(u8(o, 0)), 1
		if kind != optEnd && kind != optNop {
			if size = int(u8(o, 1)); size < 2 || size > left {
				return p.badOption(between)
			}
		}
		p.say(tcpOptionNames.or(kind, "unknown-%d"))
		body := skip(o, 2)
		if size == 1 {
			body = nil
		}
		of.kind, of.size, of.left, of.body = kind, size-2, left-2, body
		used, ok, cut := p.wholeOption(of)
		switch {
		case cut:
			p.truncated()
			p.sayIf(between != "", ">")
			return false
		case !ok:
			return p.badOption(between)
		}
		if size > 1 && used != size-2 {
			p.printf("[len %d]", size)
		}
		if kind == optEnd {
			break
		}
		size = min(size, 2) + used // behind a wrong size tcpdump goes on where it has read to
		o, left = skip(o, size), left-size
	}
	p.say("]")
	return true
}

func (p *printer) badOption(between string) bool {
	p.say("[bad opt]")
	p.sayIf(between != "", "]")
	return false
}

// optionInHand is one option while it is printed: what its length says that it has, what the header has
// room for, and what is there of it and all that follows.
type optionInHand struct {
	kind, size, left int
	body             []byte

	// Of the segment:
	flags byte
	peer  uint32 // where the peer's numbers began
	whole bool   // all that it carries was captured
}

// room tells whether the header has n bytes for the option. They may still be cut off,
// which ends the line.
func (o *optionInHand) room(n int) bool {
	if n > o.left {
		return false
	}
	need(o.body, n)
	return true
}

// wholeOption is tcpOption; cut tells that the packet ends within the option, behind
// whose length its header still is known.
func (p *printer) wholeOption(o optionInHand) (used int, ok, cut bool) {
	defer untilCut(func() { cut = true })
	used, ok = p.tcpOption(o)
	return used, ok, false
}

// tcpOption writes what an option says, and gives how many bytes that took.
func (p *printer) tcpOption(o optionInHand) (used int, ok bool) {
	switch o.kind {
	case optEnd, optNop, optSackOK:
		return 0, true
	case optMSS:
		return p.numberOption(&o, 2, func() { p.printf(" %d", u16(o.body, 0)) })
	case optScale:
		return p.numberOption(&o, 1, func() { p.printf(" %d", u8(o.body, 0)) })
	case optEcho, optEchoReply, optCC, optCCNew, optCCEcho:
		return p.numberOption(&o, 4, func() { p.printf(" %d", u32(o.body, 0)) })
	case optStamps:
		return p.numberOption(&o, 8, func() { p.printf(" val %d ecr %d", u32(o.body, 0), u32(o.body, 4)) })
	case optMD5:
		return p.numberOption(&o, md5Size, func() { p.signature(&o) })
	case optSCPS:
		return p.numberOption(&o, 2, func() { p.printf(" cap %02x id %d", u8(o.body, 0), u8(o.body, 1)) })
	case optTimeout:
		return p.numberOption(&o, 2, func() { p.userTimeout(u16(o.body, 0)) })
	}
	switch o.kind {
	case optMPTCP, optFastOpen, optTrial:
		need(o.body, o.size)
		return o.size, p.bytesOption(&o)
	case optSack:
		p.sackOption(o.body, o.size, o.peer)
	case optAO:
		p.authOption(o.body, o.size)
	default:
		if o.size > 0 {
			p.say(" 0x")
			p.hexBytes(o.body, 0, o.size)
		}
	}
	return o.size, true
}

// hexBytes writes bytes in hexadecimal until one is cut off.
func (p *printer) hexBytes(d []byte, from, to int) {
	for i := from; i < to; i++ {
		p.printf("%02x", u8(d, i))
	}
}

// numberOption writes an option of a fixed size.
func (p *printer) numberOption(o *optionInHand, size int, write func()) (used int, ok bool) {
	if !o.room(size) {
		return 0, false
	}
	write()
	return size, true
}

// signature writes a signature (RFC 2385), which nobody can check who has no key.
func (p *printer) signature(o *optionInHand) {
	why := "snaplen too short"
	if o.whole {
		why = "shared secret not supplied with -M"
	}
	p.printf(" %s, can't check - %s", why, hexOf(part(o.body, 0, md5Size)))
}

// userTimeout writes a time in minutes or seconds as seconds (RFC 5482).
func (p *printer) userTimeout(v uint16) {
	seconds := int(v >> 1)
	if v&1 != 0 {
		seconds *= 60
	}
	p.printf(" 0x%x %d", v, seconds)
}

// bytesOption writes an option whose own length says how much it has, all of which is
// there.
func (p *printer) bytesOption(o *optionInHand) bool {
	body := o.body[:o.size]
	switch o.kind {
	case optMPTCP:
		return p.mptcp(body, o.flags)
	case optFastOpen:
		p.line.WriteByte(' ')
		p.fastOpen(body)
		return true
	}
	if len(body) < 2 {
		return false
	}
	if number := u16(body, 0); number != trialFastOpen {
		p.printf("-%04x", number)
		return true
	}
	p.say("-tfo")
	p.fastOpen(body[2:])
	return true
}

// sackOption writes size bytes of blocks, which count the peer's bytes.
func (p *printer) sackOption(d []byte, size int, peer uint32) {
	if size%8 != 0 {
		p.say(" invalid sack")
		return
	}
	p.printf(" %d ", size/8)
	for i := 0; i < size; i += 8 {
		p.printf("{%d:%d}", u32(d, i)-peer, u32(d, i+4)-peer)
	}
}

// authOption writes size bytes of the authentication option (RFC 5925).
func (p *printer) authOption(d []byte, size int) {
	if size < 2 {
		p.invalid()
		return
	}
	p.printf(" keyid %d", u8(d, 0))
	p.printf(" rnextkeyid %d", u8(d, 1))
	if size > 2 {
		p.say(" mac 0x")
		p.hexBytes(d, 2, size)
	}
}

// fastOpen writes a cookie, or that one is asked for (RFC 7413).
func (p *printer) fastOpen(d []byte) {
	switch {
	case len(d) == 0:
		p.say(" cookiereq")
	case len(d)%2 != 0 || len(d) < 4 || len(d) > 16:
		p.invalid()
	default:
		p.printf(" cookie %s", hexOf(d))
	}
}

// mptcpKinds are what a Multipath TCP option is about (RFC 8684).
var mptcpKinds = [...]string{"capable", "join", "dss", "add-addr", "rem-addr", "prio", "fail", "fast-close"}

// mptcp writes a Multipath TCP option without its first two bytes; false when its
// length fits none of its shapes.
func (p *printer) mptcp(d []byte, flags byte) bool {
	p.proto = "mptcp"
	if len(d) < 1 {
		return false
	}
	kind := int(d[0] >> 4)
	if kind >= len(mptcpKinds) {
		p.printf(" %d unknown", len(d)+2)
		return true
	}
	p.printf(" %d %s", len(d)+2, mptcpKinds[kind])
	switch kind {
	case 0:
		return p.mptcpCapable(d, flags)
	case 1:
		return p.mptcpJoin(d, flags)
	case 2:
		return p.mptcpSequence(d, flags)
	case 3:
		return p.mptcpAddress(d)
	case 4:
		return p.mptcpRemove(d)
	case 5:
		return p.mptcpPriority(d)
	case 6:
		return p.mptcpNumber(d, " seq %d")
	}
	return p.mptcpNumber(d, " key 0x%x")
}

// Each of the following counts d from the third byte of the option.

func (p *printer) mptcpCapable(d []byte, flags byte) bool {
	n := len(d)
	opening := (n == 10 || n == 2) && flags&tcpSYN != 0
	if !opening && (n != 18 && n != 20 || flags&(tcpSYN|tcpACK) != tcpACK) {
		return false
	}
	if version := d[0] & 0xf; version > 1 {
		p.printf(" Unknown Version (%d)", version)
		return true
	}
	p.printf(" v%d", d[0]&0xf)
	p.sayIf(d[1]&0x80 != 0, " csum")
	switch {
	case n >= 18:
		p.printf(" {0x%x,0x%x}", u64(d, 2), u64(d, 10))
	case n == 10:
		p.printf(" {0x%x}", u64(d, 2))
	}
	return true
}

func (p *printer) mptcpJoin(d []byte, flags byte) bool {
	syn, ack := flags&tcpSYN != 0, flags&tcpACK != 0
	third := len(d) == 22 && ack
	if !(len(d) == 10 && syn || len(d) == 14 && syn && ack || third) {
		return false
	}
	if third {
		p.printf(" hmac 0x%s", hexOf(d[2:]))
		return true
	}
	p.sayIf(d[0]&1 != 0, " backup")
	p.printf(" id %d", d[1])
	if len(d) == 10 {
		p.printf(" token 0x%x nonce 0x%x", u32(d, 2), u32(d, 6))
	} else {
		p.printf(" hmac 0x%x nonce 0x%x", u64(d, 2), u32(d, 10))
	}
	return true
}

// The flags of a data sequence signal.
const (
	dssAck     = 0x01
	dssAck8    = 0x02
	dssMap     = 0x04
	dssMap8    = 0x08
	dssFinish  = 0x10
	dssMapRest = 6 // of a mapping, beside its sequence number
)

func (p *printer) mptcpSequence(d []byte, flags byte) bool {
	if len(d) < 2 || flags&tcpSYN != 0 {
		return false
	}
	has := d[1]
	p.sayIf(has&dssFinish != 0, " fin")
	d = d[2:]
	ok := true
	if has&dssAck != 0 {
		p.say(" ack ")
		if d, ok = p.mptcpCounter(d, has&dssAck8 != 0); !ok {
			return false
		}
	}
	if has&dssMap == 0 {
		return len(d) == 0
	}
	p.say(" seq ")
	if d, ok = p.mptcpCounter(d, has&dssMap8 != 0); !ok {
		return false
	}
	if len(d) < 4 {
		return false
	}
	p.printf(" subseq %d", u32(d, 0))
	if len(d) < dssMapRest {
		return false
	}
	p.printf(" len %d", u16(d, 4))
	if d = d[dssMapRest:]; len(d) >= 2 {
		p.printf(" csum 0x%x", u16(d, 0))
		d = d[2:]
	}
	return len(d) == 0
}

// mptcpCounter writes a number of 8 or 4 bytes, and gives what is behind it.
func (p *printer) mptcpCounter(d []byte, long bool) (rest []byte, ok bool) {
	switch {
	case long && len(d) >= 8:
		p.printf("%d", u64(d, 0))
		return d[8:], true
	case !long && len(d) >= 4:
		p.printf("%d", u32(d, 0))
		return d[4:], true
	}
	return nil, false
}

// mptcpVersions are the low bits of an address: its version in the first edition of
// the protocol, whether it is an echo in the second.
var mptcpVersions = names{0: "v1", 1: "v1-echo", 4: "v0-ip4", 6: "v0-ip6"}

func (p *printer) mptcpAddress(d []byte) bool {
	size := 4
	switch len(d) {
	case 6, 8, 14, 16:
	case 18, 20, 26, 28:
		size = 16
	default:
		return false
	}
	p.printf(" %s id %d %s", mptcpVersions.or(int(d[0]&0xf), "[bad version/echo]"), d[1], addr(d[2:2+size]))
	rest := d[2+size:]
	if len(rest) == 2 || len(rest) == 10 {
		p.printf(":%d", u16(rest, 0))
		rest = rest[2:]
	}
	if len(rest) == 8 {
		p.printf(" hmac 0x%x", u64(rest, 0))
	}
	return true
}

func (p *printer) mptcpRemove(d []byte) bool {
	if len(d) < 2 {
		return false
	}
	p.say(" id")
	for _, id := range d[1:] {
		p.printf(" %d", id)
	}
	return true
}

func (p *printer) mptcpPriority(d []byte) bool {
	if len(d) != 1 && len(d) != 2 {
		return false
	}
	if d[0]&1 != 0 {
		p.say(" backup")
	} else {
		p.say(" non-backup")
	}
	if len(d) == 2 {
		p.printf(" id %d", d[1])
	}
	return true
}

func (p *printer) mptcpNumber(d []byte, format string) bool {
	if len(d) != 10 {
		return false
	}
	p.printf(format, u64(d, 2))
	return true
}
