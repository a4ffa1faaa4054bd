package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/sockd/sockd/ctl"
	"github.com/spf13/cobra"
)

// manCommand prints the manual page, which is made from the verbs. It is for
// those who build sockd: sockd-ctl man > docs/man/sockd-ctl.1
func manCommand(e *ctl.Env) *cobra.Command {
	return &cobra.Command{
		Use:    "man",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return writeMan(e.Stdout) },
	}
}

// writeMan writes sockd-ctl(1) in the man macros of groff_man(7). It is the same
// for the same verbs: it has no date in it.
func writeMan(w io.Writer) error {
	var m roff
	m.raw(`.TH SOCKD\-CTL 1 "" sockd "User Commands"`)
	m.section("NAME")
	m.text(`sockd-ctl - open, join, watch and capture sockets of every family through sockd`)
	m.section("SYNOPSIS")
	m.raw(`.B sockd\-ctl`)
	m.raw(`[\fIflags\fR] \fIVERB\fR [\fIarguments\fR]`)
	m.section("DESCRIPTION")
	m.text("sockd-ctl talks to the daemon sockd(8) over its control socket. The daemon owns what is opened, so sockets stay open between commands until they are closed.")
	m.text(manReferences)
	manFlags(&m, "FLAGS", globalRows())
	groups := byGroup()
	for _, g := range ctl.Groups() {
		m.section(strings.ToUpper(g))
		for _, v := range groups[g] {
			manVerb(&m, v)
		}
	}
	m.tagged("sockd-ctl completion bash|zsh|fish", "Print the completion script of a shell.")
	manEndpoints(&m)
	manQuantities(&m)
	manOutput(&m)
	manLayers(&m)
	manWireshark(&m)
	manExit(&m)
	m.section("ENVIRONMENT")
	m.tagged("SOCKD_SOCKET", "The control socket, where --socket is not given.")
	m.tagged("XDG_RUNTIME_DIR", "Where the control socket of a user's own daemon lies: sockd/io.sockd below it.")
	m.section("FILES")
	m.tagged("/run/sockd/io.sockd", "The control socket of the system's daemon.")
	m.section("SEE ALSO")
	m.text("sockd(8), sockd.conf(5), tcpdump(8), pcap-filter(7), socket(7), ss(8)")
	_, err := w.Write(m.Bytes())
	return err
}

const manReferences = `An ID is a number that no other socket, relay, session or capture has. A NAME is a letter or _, then letters, digits, _ . or -, at most 64; it names a relay. A REF is either.`

func manVerb(m *roff, v ctl.Verb) {
	m.raw(".SS " + escapeRoff(usageLine(v)))
	m.text(sentence(v.Short))
	m.text(v.Long)
	for _, r := range flagRows(verbFlags(v)) {
		m.tagged(r[0], r[1])
	}
	if len(v.Examples) > 0 {
		m.literal(v.Examples)
	}
}

func manFlags(m *roff, title string, rows [][2]string) {
	m.section(title)
	m.text("They stand before or after the verb, and never mean anything else.")
	for _, r := range rows {
		m.tagged(r[0], r[1])
	}
}

func manEndpoints(m *roff) {
	m.section("ENDPOINTS")
	m.text("An endpoint is NETWORK:ADDRESS[,option[=value]]... The network ends at the first colon. In the address and in values \\, \\\\ and \\xNN stand for a comma, a backslash and any byte. FROM is bound, and listens where its type can; TO is dialled.")
	m.tagged("tcp tcp4 tcp6 udp udp4 udp6", "HOST:PORT, [V6%zone]:PORT or :PORT. Port 0 lets the system choose.")
	m.tagged("ip4:PROTO ip6:PROTO", "A raw socket of a protocol: ip4:icmp:10.0.0.1, or ip4:icmp: which is not bound.")
	m.tagged("unix unixgram unixpacket", "/path, a path relative to here, or @name for an abstract name. sockd-ctl opens it with its user's rights.")
	m.tagged("packet", "IFNAME[/ETHERTYPE[/MAC]]: eth0, eth0/ip, eth0/0x88b5; any is all interfaces.")
	m.tagged("fd", "fd:NAME, a descriptor that systemd handed to the daemon.")
	m.tagged("id", "id:7, a socket that is already open; the relay then owns it.")
	m.text("Options are the socket options of the verb opt and: netns=; for inet iface= src= backlog= v6only reuseport join=; for a unix FROM mode= user= group= backlog=; for packet cooked nopromisc outgoing; for a stream framing=u16be|u32be|lf; for a FROM proxy=accept; for a TO backup retry= src=ADDRESS proxy=v1|v2, and with --balance fanout loss=block|drop-oldest|disconnect queue=.")
}

func manQuantities(m *roff) {
	m.section("QUANTITIES")
	m.text("A duration D is a number with ms, s, m, h or d; a bare number is seconds, 0 does not wait, none has no limit. A SIZE is bytes, or a number with k, M, G or T, which are powers of 1024.")
}

func manOutput(m *roff) {
	m.section("OUTPUT")
	m.text("Results go to standard output, words to standard error. Text may change between versions; what --json, --jsonl, and -o with --no-header print may not. With -o and without a terminal a tab stands between the columns. In JSON durations are nanoseconds, sizes bytes, and times RFC 3339 in UTC.")
	m.text("An error is one line, with the name of the kernel's error in parentheses where there was one, and the command that would help below it. With --json it is one object with error, message, exit, errno and hint.")
}

func manExit(m *roff) {
	m.section("EXIT STATUS")
	for _, r := range [][2]string{
		{"0", "Done."},
		{"1", "Another failure."},
		{"2", "Usage: an argument, address, option or filter that does not parse, or what this type of socket has not."},
		{"3", "No such ID, NAME or interface."},
		{"4", "Permission denied."},
		{"5", "No daemon listens."},
		{"6", "The time ran out."},
		{"7", "In use: the address, the name, or the socket."},
		{"8", "Another error of the kernel."},
		{"9", "The end of the stream (recv)."},
		{"130, 143", "SIGINT, SIGTERM, where that is not the normal end."},
	} {
		m.tagged(r[0], r[1])
	}
	m.text("With several REFs all are tried, and the first failure counts.")
	m.text("After SIGINT or SIGTERM a command says what it has to say at its end. Signals within two seconds of the first mean the same; a later one ends it at once.")
}

// roff writes the man macros.
type roff struct{ bytes.Buffer }

func (m *roff) raw(line string) { m.WriteString(line + "\n") }

func (m *roff) section(title string) { m.raw(".SH " + escapeRoff(title)) }

// text writes paragraphs. Lines that begin with a space stay as they are.
func (m *roff) text(s string) {
	for _, p := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if p == "" {
			continue
		}
		m.raw(".PP")
		m.paragraph(p)
	}
}

func (m *roff) paragraph(p string) {
	literal := false
	for _, line := range strings.Split(p, "\n") {
		if indented := strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"); indented != literal {
			literal = indented
			m.raw(map[bool]string{true: ".nf", false: ".fi"}[literal])
		}
		m.raw(guardRoff(escapeRoff(line)))
	}
	if literal {
		m.raw(".fi")
	}
}

func (m *roff) tagged(tag, text string) {
	m.raw(".TP")
	m.raw(fmt.Sprintf(`\fB%s\fR`, escapeRoff(tag)))
	m.raw(guardRoff(escapeRoff(text)))
}

func (m *roff) literal(lines []string) {
	m.raw(".PP")
	m.raw(".nf")
	m.raw(".RS")
	for _, l := range lines {
		m.raw(guardRoff(escapeRoff(l)))
	}
	m.raw(".RE")
	m.raw(".fi")
}

// escapeRoff makes text plain to roff: a hyphen that can be copied, a backslash.
var escapeRoff = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", "\\(ga", "'", `\(aq`, "^", `\(ha`, "~", `\(ti`).Replace

// guardRoff keeps a line from being read as a request.
func guardRoff(line string) string {
	if strings.HasPrefix(line, ".") {
		return `\&` + line
	}
	return line
}
