# sockd's Makefile. `make build install` needs Go and Linux; `make help` lists the rest.

.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

GO      ?= go
INSTALL ?= install

# A release tarball carries a VERSION file; a clone asks git.
VERSION ?= $(shell cat VERSION 2>/dev/null || git describe --tags --always --dirty 2>/dev/null || echo devel)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##### build ###################################################################

BIN ?= bin

# Static, and the same bytes from the same source whoever builds it.
build: ## build sockd and sockd-ctl into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o "$(BIN)/" ./cmd/sockd ./cmd/sockd-ctl

clean: ## remove what build made
	rm -rf bin

##### install #################################################################
#
# PREFIX   where programs go, below it bin, share/man and   (/usr/local)
#          share's folders for shell completion
# DESTDIR  a tree to install into instead of /, for packages (empty)
# EXTCAPDIR  Wireshark's folder for extcap programs, to put   (empty: none)
#          the link sockd-extcap there; `tshark -G folders` tells it
#
# systemd reads units and its other files below /usr/lib and /usr/local/lib; for
# any other PREFIX they go below /etc. @PREFIX@ in a unit becomes PREFIX.
# Without DESTDIR on a machine that runs systemd, install also makes the user
# sockd and /run/sockd, and reloads systemd; it enables and starts nothing.

PREFIX      ?= /usr/local
MANDIR      ?= $(PREFIX)/share/man
ifneq ($(filter /usr /usr/local,$(PREFIX)),)
UNITDIR     ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
else
UNITDIR     ?= /etc/systemd/system
SYSUSERSDIR ?= /etc/sysusers.d
TMPFILESDIR ?= /etc/tmpfiles.d
endif

PROGRAMS := sockd sockd-ctl
UNITS    := sockd.socket sockd.service
# Made by `make man`; what is there is installed.
MANPAGES  = $(wildcard docs/man/*.1 docs/man/*.5 docs/man/*.8)
# SHELL:FILE, the file below PREFIX/share where the shell looks for it. The program
# prints them: COMPLETIONS= leaves them out, for one that does not run here.
COMPLETIONS := bash:bash-completion/completions/sockd-ctl \
	zsh:zsh/site-functions/_sockd-ctl \
	fish:fish/vendor_completions.d/sockd-ctl.fish

# Whether this install is for the running machine.
LIVE = test -z "$(DESTDIR)" && test -d /run/systemd/system

install: build ## install programs, units, man pages and completion (PREFIX, DESTDIR)
	$(INSTALL) -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(SYSUSERSDIR)" "$(DESTDIR)$(TMPFILESDIR)"
	$(INSTALL) -m 0755 $(PROGRAMS:%="$(BIN)/%") "$(DESTDIR)$(PREFIX)/bin"
	for unit in $(UNITS); do \
		sed 's|@PREFIX@|$(PREFIX)|g' systemd/$$unit >"$(DESTDIR)$(UNITDIR)/$$unit" && \
		chmod 0644 "$(DESTDIR)$(UNITDIR)/$$unit" || exit 1; done
	$(INSTALL) -m 0644 systemd/sysusers.d/sockd.conf "$(DESTDIR)$(SYSUSERSDIR)/sockd.conf"
	$(INSTALL) -m 0644 systemd/tmpfiles.d/sockd.conf "$(DESTDIR)$(TMPFILESDIR)/sockd.conf"
	for page in $(MANPAGES); do \
		$(INSTALL) -D -m 0644 $$page "$(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}" || exit 1; done
	for completion in $(COMPLETIONS); do \
		file="$(DESTDIR)$(PREFIX)/share/$${completion#*:}" && \
		$(INSTALL) -d "$${file%/*}" && \
		"$(BIN)/sockd-ctl" completion "$${completion%%:*}" >"$$file" && \
		chmod 0644 "$$file" || exit 1; done
	if test -n "$(EXTCAPDIR)"; then \
		$(INSTALL) -d "$(DESTDIR)$(EXTCAPDIR)" && \
		ln -sf "$(PREFIX)/bin/sockd-ctl" "$(DESTDIR)$(EXTCAPDIR)/sockd-extcap"; fi
	if $(LIVE); then \
		systemd-sysusers "$(SYSUSERSDIR)/sockd.conf" && \
		systemd-tmpfiles --create "$(TMPFILESDIR)/sockd.conf" && \
		systemctl daemon-reload && \
		echo 'installed; next: systemctl enable --now sockd.socket'; fi

# The user sockd, /etc/sockd and /var/lib/sockd stay: they may hold somebody's work.
uninstall: ## remove what install put there
	if $(LIVE); then systemctl disable --now $(UNITS) || true; fi
	rm -f $(foreach p,$(PROGRAMS),"$(DESTDIR)$(PREFIX)/bin/$(p)")
	if test -n "$(EXTCAPDIR)"; then rm -f "$(DESTDIR)$(EXTCAPDIR)/sockd-extcap"; fi
	rm -f $(foreach u,$(UNITS),"$(DESTDIR)$(UNITDIR)/$(u)")
	rm -f "$(DESTDIR)$(SYSUSERSDIR)/sockd.conf" "$(DESTDIR)$(TMPFILESDIR)/sockd.conf"
	for section in 1 5 8; do \
		rm -f "$(DESTDIR)$(MANDIR)/man$$section"/sockd*.$$section; done
	for completion in $(COMPLETIONS); do \
		rm -f "$(DESTDIR)$(PREFIX)/share/$${completion#*:}"; done
	if $(LIVE); then systemctl daemon-reload; fi

.PHONY: help build clean install uninstall

##### demo, test, lint, bench, man ############################################

demo: build ## the main job on real traffic, on a private daemon; needs Go and Linux only
	$(GO) run ./cmd/demo -bin bin

# BENCH=-quick takes half a minute; docs/performance.md has the other flags.
bench: build ## sockd beside its peers, those that are installed; takes ten minutes, BENCH=-quick half a one
	$(GO) run ./bench -bin bin $(BENCH)

# COMPARE='-doc docs/comparison.md' writes the tables there.
compare: build ## what becomes of resets, half-closes, datagrams: sockd beside its peers; five minutes
	$(GO) run ./bench compare -bin bin $(COMPARE)

# BENCH as for bench; docs/performance.md has the rows. It needs root, for namespaces of its own.
bench-capture: build ## captures and injection beside tcpdump, dumpcap, netsniff-ng; root; ten minutes, BENCH=-quick half a one
	$(GO) run ./bench capture -bin bin $(BENCH)

.PHONY: bench bench-capture compare

test: tools lint ## everything, with the race detector; as root on Debian it installs what the tests need
	$(GO) test -race -count=1 -timeout 5m ./...

tools:
	.ci/tools

man: ## write docs/man/sockd-ctl.1 again, from the verbs
	$(GO) run ./cmd/sockd-ctl man >docs/man/sockd-ctl.1.new
	mv docs/man/sockd-ctl.1.new docs/man/sockd-ctl.1

lint: ## gofmt, vet, staticcheck, and the man pages are those of the commands
	@unformatted=$$(gofmt -l bench cmd ctl daemon families systemd) && test -z "$$unformatted" || { echo "gofmt -w $$unformatted" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# `make test` does the same, too, for five seconds.
SOAK ?= 10m
soak: tools ## mixed sessions for SOAK=10m: nothing may be left behind, no byte unaccounted for
	$(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./cmd/acceptance -args -for $(SOAK)

# It boots systemd in namespaces of its own, as root. -wmem is the kernel's own
# net.core.wmem_max, which the whole machine shares: it is set back at the end.
PROVE ?= -kills 300 -mib 8192 -sessions 500 -rounds 20 -upgrades 20 -rate 500 -wmem 212992
prove: tools ## kill, restart and replace sockd under connections: not one may break; root; five minutes
	$(GO) test -count=1 -timeout 0 -v -run '^Test' ./cmd/prove -args $(PROVE)

# Real fuzzing; `make test` runs the seeds only.
FUZZTIME ?= 30s
fuzz: ## let every fuzz law look for new inputs, FUZZTIME=30s each
	for pkg in $$($(GO) list ./...); do \
		for law in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			$(GO) test -run '^$$' -fuzz "^$$law\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; done; done

.PHONY: demo test tools man lint soak prove fuzz
