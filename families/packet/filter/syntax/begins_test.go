package syntax

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhatAFilterBeginsWithIsNoSource(t *testing.T) {
	for _, word := range []string{
		"tcp", "fragments", "vxlan", "carp", "uid", "pid", "comm", "unit", "slip", "vrrp", "gateway", "ifindex", "byte", "type", "rnr", "icmp-echo",
		"!tcp", "!", "(tcp)", "(", "-1", "ip6[0]=1", "ip6[0]", "ether[0]", "tcp port 80", "len>5", "len*2=8", "src&&dst", "80", "0x50", "10.0.0.1", "::1", "1:2:3:4:5:6", "$1f", `\tcp`, "and", "or", "", " ",
	} {
		require.True(t, BeginsFilter(word), "%q", word)
	}
	for _, word := range []string{
		"eth0", "any", "lo", "br-lan", "vlan10", "eth0.100", "ip6tnl0", "tcp_dump", "tcp-1", "6to4", "nothing", "TCP", "black", "vxlan_sys_4789",
		"*", "veth*", "vlan*", "vlan?", "ip*", "geneve[0-9]", "ppp[0-9]", "wlan[01]", "eth[01]", "[ev]*", "?", "any,lo", "vlan,eth0", "tcp:80", "eth0=x",
	} {
		require.False(t, BeginsFilter(word), "%q", word)
	}
}

// No keyword that the scanner knows may be forgotten.
func TestEveryWordOfTheLanguageBeginsAFilter(t *testing.T) {
	for word := range keywords {
		require.True(t, BeginsFilter(word), word)
	}
}
