package filter

import (
	"strings"
	"sync"
)

// What machines without /etc/services and /etc/protocols know, in the form of these files:
// the numbers are IANA's, the names the usual ones.

var wellKnownServices = sync.OnceValue(func() map[string]service {
	return parseServices(strings.NewReader(serviceTable))
})

var wellKnownProtocols = sync.OnceValue(func() map[string]uint8 {
	return parseProtocols(strings.NewReader(protocolTable))
})

const serviceTable = `
echo 7/tcp
echo 7/udp
discard 9/tcp
discard 9/udp
daytime 13/tcp
daytime 13/udp
chargen 19/tcp
chargen 19/udp
ftp-data 20/tcp
ftp 21/tcp
ssh 22/tcp
telnet 23/tcp
smtp 25/tcp mail
time 37/tcp
time 37/udp
whois 43/tcp nicname
tacacs 49/tcp
tacacs 49/udp
domain 53/tcp
domain 53/udp
bootps 67/udp
bootpc 68/udp
tftp 69/udp
gopher 70/tcp
finger 79/tcp
http 80/tcp www
kerberos 88/tcp krb5
kerberos 88/udp krb5
pop3 110/tcp
sunrpc 111/tcp portmapper
sunrpc 111/udp portmapper
auth 113/tcp ident
nntp 119/tcp
ntp 123/udp
epmap 135/tcp
netbios-ns 137/udp
netbios-dgm 138/udp
netbios-ssn 139/tcp
imap2 143/tcp imap
snmp 161/tcp
snmp 161/udp
snmp-trap 162/tcp snmptrap
snmp-trap 162/udp snmptrap
xdmcp 177/udp
bgp 179/tcp
ptp-event 319/udp
ptp-general 320/udp
ldap 389/tcp
ldap 389/udp
svrloc 427/tcp
svrloc 427/udp
https 443/tcp
https 443/udp
microsoft-ds 445/tcp
kpasswd 464/tcp
kpasswd 464/udp
submissions 465/tcp smtps
isakmp 500/udp
exec 512/tcp
biff 512/udp
login 513/tcp
who 513/udp
shell 514/tcp cmd syslog
syslog 514/udp
printer 515/tcp
route 520/udp router
dhcpv6-client 546/udp
dhcpv6-server 547/udp
afpovertcp 548/tcp
rtsp 554/tcp
rtsp 554/udp
nntps 563/tcp
submission 587/tcp
ipp 631/tcp
ldaps 636/tcp
ldaps 636/udp
ldp 646/tcp
ldp 646/udp
domain-s 853/tcp
domain-s 853/udp
rsync 873/tcp
ftps-data 989/tcp
ftps 990/tcp
telnets 992/tcp
imaps 993/tcp
pop3s 995/tcp
socks 1080/tcp
openvpn 1194/tcp
openvpn 1194/udp
ms-sql-s 1433/tcp
ms-sql-m 1434/udp
l2f 1701/udp l2tp
pptp 1723/tcp
radius 1812/tcp
radius 1812/udp
radius-acct 1813/tcp
radius-acct 1813/udp
nfs 2049/tcp
nfs 2049/udp
iscsi-target 3260/tcp
mysql 3306/tcp
ms-wbt-server 3389/tcp
stun 3478/tcp
stun 3478/udp
svn 3690/tcp
ntske 4460/tcp
ipsec-nat-t 4500/udp
iax 4569/udp
vxlan 4789/udp
sip 5060/tcp
sip 5060/udp
sip-tls 5061/tcp
sip-tls 5061/udp
xmpp-client 5222/tcp
xmpp-server 5269/tcp
mdns 5353/udp
llmnr 5355/tcp
llmnr 5355/udp
postgresql 5432/tcp postgres
amqps 5671/tcp
amqp 5672/tcp
x11 6000/tcp
geneve 6081/udp
redis 6379/tcp
syslog-tls 6514/tcp
ircd 6667/tcp
http-alt 8080/tcp webcache
mqtt 1883/tcp
secure-mqtt 8883/tcp
git 9418/tcp
zabbix-agent 10050/tcp
memcached 11211/tcp
memcached 11211/udp
wireguard 51820/udp
`

const protocolTable = `
ip 0 IP
icmp 1 ICMP
igmp 2 IGMP
ipencap 4 IP-ENCAP
tcp 6 TCP
egp 8 EGP
igp 9 IGP
udp 17 UDP
dccp 33 DCCP
ipv6 41 IPv6
ipv6-route 43 IPv6-Route
ipv6-frag 44 IPv6-Frag
rsvp 46 RSVP
gre 47 GRE
esp 50 IPSEC-ESP
ah 51 IPSEC-AH
ipv6-icmp 58 IPv6-ICMP
ipv6-nonxt 59 IPv6-NoNxt
ipv6-opts 60 IPv6-Opts
eigrp 88 EIGRP
ospf 89 OSPFIGP
ipip 94 IPIP
etherip 97 ETHERIP
pim 103 PIM
ipcomp 108 IPCOMP
vrrp 112 VRRP
l2tp 115 L2TP
isis 124 ISIS
sctp 132 SCTP
fc 133 FC
mobility-header 135 Mobility-Header
udplite 136 UDPLite
mpls-in-ip 137 MPLS-in-IP
hip 139 HIP
hopopt 0 HOPOPT
`
