package main

import (
	"bytes"
	"slices"
	"strings"
)

// Words that a request of HTTP or RTSP begins with. An answer has a number of three
// digits as its second word.
var (
	httpWords = []string{
		"GET", "PUT", "COPY", "HEAD", "LOCK", "MOVE", "POLL", "POST", "BCOPY", "BMOVE", "MKCOL", "TRACE", "LABEL", "MERGE", "DELETE", "SEARCH", "UNLOCK",
		"REPORT", "UPDATE", "NOTIFY", "BDELETE", "CONNECT", "OPTIONS", "CHECKIN", "PROPFIND", "CHECKOUT", "CCM_POST", "SUBSCRIBE", "PROPPATCH", "BPROPFIND",
		"BPROPPATCH", "UNCHECKOUT", "MKACTIVITY", "MKWORKSPACE", "UNSUBSCRIBE", "RPC_CONNECT", "VERSION-CONTROL", "BASELINE-CONTROL",
	}
	rtspWords = []string{"DESCRIBE", "ANNOUNCE", "GET_PARAMETER", "OPTIONS", "PAUSE", "PLAY", "RECORD", "REDIRECT", "SETUP", "SET_PARAMETER", "TEARDOWN"}
)

// lines writes the first line of a protocol of text, and with -v all lines. Where
// there are words, only a text that begins with one of them, or whose word number
// answer is an answer's, is more than data.
func (p *printer) lines(proto string, data []byte, length int, words []string, answer int) {
	p.proto = proto
	p.printf(": %s", strings.ToUpper(proto))
	data = first(data, length)
	if words != nil && !speaks(data, words, answer) {
		return
	}
	if !p.verbose(1) {
		p.textLine(": ", data, length)
		return
	}
	p.printf(", length: %d", length)
	for at := 0; at < length; {
		size := p.textLine("\n\t", skip(data, at), length-at)
		if size == 0 {
			return
		}
		at += size
	}
}

// maxWord is the longest word that is looked at.
const maxWord = 128

// speaks tells whether data is a request or an answer, by its first line.
func speaks(data []byte, words []string, answer int) bool {
	line := first(data, 2*maxWord)
	if end := bytes.IndexAny(line, "\r\n"); end >= 0 {
		line = line[:end]
	}
	fields := bytes.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) == 0 || line[0] == ' ' || line[0] == '\t' || bytes.ContainsFunc(fields[0], func(r rune) bool { return r < 0x20 || r >= 0x7f }) {
		return false
	}
	if slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, string(fields[0])) }) {
		return true
	}
	if len(fields) <= answer || len(fields[answer]) != 3 {
		return false
	}
	return !bytes.ContainsFunc(fields[answer], func(r rune) bool { return r < '0' || r > '9' })
}

// textLine writes a line after before, and gives its size with its end; 0, and
// nothing is written, when it is no text, 0 also when it goes on beyond the packet.
func (p *printer) textLine(before string, data []byte, length int) (size int) {
	for i := range length {
		switch c := u8(data, i); {
		case c == '\n':
			p.printf("%s%s", before, data[:i])
			return i + 1
		case c == '\r':
			if i+1 >= length || u8(data, i+1) != '\n' {
				return 0
			}
			p.printf("%s%s", before, data[:i])
			return i + 2
		case c != '\t' && (c < 0x20 || c >= 0x7f):
			return 0
		}
	}
	p.printf("%s%s", before, data[:length])
	p.truncated()
	return 0
}

// sshVersion writes the line with which both ends of SSH begin.
func (p *printer) sshVersion(data []byte, length int) {
	const begins = "SSH-"
	p.proto = "ssh"
	for i := range max(length, len(begins)) {
		switch c := u8(data, i); {
		case i < len(begins):
			if c != begins[i] {
				return
			}
		case c == '\n' || c == '\r' && i+1 < length && u8(data, i+1) == '\n':
			p.printf(": SSH: %s", data[:i])
			return
		case c < 0x20 || c >= 0x7f:
			return
		}
	}
}
