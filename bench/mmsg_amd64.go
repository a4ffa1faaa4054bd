package main

// The standard library's frozen list for amd64 ends before sendmmsg(2).
const sysSendmmsg = 307
