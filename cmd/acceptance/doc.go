// Package acceptance has sockd's promises as tests: the real daemon, the real
// sockd-ctl, and real peers (nginx, curl, socat, tcpdump, tshark, python) on the
// other side. It holds tests only, and nothing imports it.
package acceptance
