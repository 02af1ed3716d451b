# exportws: one C file and its header. POSIX make: works with GNU make and BSD make.
.POSIX:
.SUFFIXES:

CC       = cc
CFLAGS   = -Os -fno-asynchronous-unwind-tables
CPPFLAGS =
LDFLAGS  =
LDLIBS   =
PREFIX   = /usr/local
DESTDIR  =

WARNINGS = -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes
STRICT   = -std=c99 -pedantic $(WARNINGS)
SOURCE   = exportws.c exportws.h

# Where a build goes: test/sanitize.sh and test/cover.sh set both to folders of their own.
PROGRAM  = exportws
BUILD    = build
SAN      = 0
JOBS     = 3
SECONDS  = 60
STEPS    = 1000000
MESSAGES = 50000
SEED     =

# Tests take system calls over by name, which _FORTIFY_SOURCE would hide from them.
TEST_FLAGS = -g -U_FORTIFY_SOURCE -Wno-overlength-strings
CMOCKA = `pkg-config --cflags --libs cmocka 2>/dev/null || \
	echo -I/usr/local/include -L/usr/local/lib -lcmocka`
COMPILE_TEST = mkdir -p $(BUILD) && $(CC) $(STRICT) $(TEST_FLAGS) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS)

# Binaries that include exportws.c: as it is, with a clock that the test sets, with system calls that
# fail, and the corpus of the fuzzers; those that embed it; those that drive the program. Then
# scripts that drive the program, and those that look at the source.
UNITS    = $(BUILD)/test_bytes $(BUILD)/test_digest $(BUILD)/test_utf8 $(BUILD)/test_head \
	$(BUILD)/test_chunk $(BUILD)/test_frame $(BUILD)/test_arena $(BUILD)/test_options
CLOCKED  = $(BUILD)/test_log $(BUILD)/test_messages $(BUILD)/test_history \
	$(BUILD)/test_trust
FAULTS   = $(BUILD)/test_start $(BUILD)/test_clock
MODEL    = $(BUILD)/model
REPLAYS  = $(BUILD)/fuzz_head $(BUILD)/fuzz_frame $(BUILD)/fuzz_session
EMBEDDED = $(BUILD)/test_api
HOSTS    = $(BUILD)/embed $(BUILD)/worker
SYSTEMS  = $(BUILD)/test_java $(BUILD)/test_reclaim $(BUILD)/test_doors $(BUILD)/test_rfc6455 \
	$(BUILD)/test_rfc9112
CHAOS    = $(BUILD)/chaos
SCRIPTS  = test/options.py test/signed.py test/curl.sh test/websockets.py test/export.sh \
	test/service.py test/hosts.sh
STATICS  = test/test_header.sh test/symbols.sh test/install.sh test/readme.py
# Where there is a Chromium.
BROWSER  = `for name in chromium chromium-browser google-chrome; \
	do command -v $$name >/dev/null && echo test/browser.py && break; done`
INSIDE   = $(UNITS) $(CLOCKED) $(FAULTS) $(EMBEDDED)

# Calls that are taken over must go by their plain names: not lstat64 for lstat.
PLAIN = -D_FILE_OFFSET_BITS=32
CLOCK_WRAP = $(PLAIN) -Wl,--wrap=clock_gettime -Wl,--wrap=time
FAULT_WRAP = $(PLAIN) `for call in poll accept recv send close fcntl socket bind listen \
	getsockname setsockopt pipe read write shutdown open connect unlink lstat getsockopt clock_gettime; \
	do printf ' -Wl,--wrap=%s' $$call; done`

all: $(PROGRAM)

$(PROGRAM): $(SOURCE)
	$(CC) $(STRICT) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ exportws.c $(LDLIBS)

run: $(PROGRAM)
	./$(PROGRAM) --demo

test: $(UNITS) $(CLOCKED)
	test/run $(UNITS) $(CLOCKED)

check: check-san-$(SAN)

check-san-0: programs
	PATH="`pwd`/build/python/bin:$$PATH" EXPORTWS="$${EXPORTWS:-./$(PROGRAM)}" BUILD="$(BUILD)" \
		JOBS="$(JOBS)" test/run $(INSIDE) $(BROWSER) $(MODEL) $(SYSTEMS) $(CHAOS) $(SCRIPTS) \
		$(STATICS)

programs: $(PROGRAM) $(INSIDE) $(MODEL) $(SYSTEMS) $(CHAOS) $(HOSTS) $(BUILD)/echo

binaries: programs $(BUILD)/test_faults $(REPLAYS) $(HOSTS)

list-inside:
	@echo $(INSIDE)

list-alone:
	@echo $(MODEL) $(REPLAYS)

list-outside:
	@echo $(SYSTEMS) $(SCRIPTS)

check-san-1:
	test/sanitize.sh

# Every system call fails at every use, with every errno: minutes, and so apart.
faults: $(BUILD)/test_faults
	TIME_LIMIT=900 test/run $(BUILD)/test_faults

# STEPS and SEED: 1000000, and one from the clock.
model: $(MODEL)
	$(MODEL) $(STEPS) $(SEED)

# 200 clients and a proxy that cuts them, MESSAGES=50000 twice: minutes.
chaos: $(PROGRAM) $(CHAOS)
	EXPORTWS=./$(PROGRAM) TIME_LIMIT=1200 test/run "$(CHAOS) $(MESSAGES) $(SEED)"

fuzz:
	test/fuzz.sh $(SECONDS)

replay: $(REPLAYS)
	test/run $(REPLAYS)

# The examples with a million posts, then under ThreadSanitizer and helgrind: a minute or two.
hosts: $(HOSTS)
	BUILD="$(BUILD)" POSTS=1000000 RACES=1 TIME_LIMIT=900 test/run test/hosts.sh

# What needs tools beside those of make check: test/verify.sh says which parts there are (PARTS=...).
verify:
	MAKE="$(MAKE)" test/verify.sh $(PARTS)

matrix:
	MAKE="$(MAKE)" test/matrix.sh $(ROWS)

attack: $(PROGRAM)
	EXPORTWS=./$(PROGRAM) python3 test/attack.py $(SECONDS)

proxies: $(PROGRAM)
	EXPORTWS=./$(PROGRAM) test/run test/proxies.py

# Three nodes and a fourth behind nginx and HAProxy: a minute.
nodes: $(PROGRAM)
	EXPORTWS=./$(PROGRAM) TIME_LIMIT=400 test/run test/nodes.py

# README's recipes: pushing from other languages, Prometheus, init scripts, the container image.
recipes: $(PROGRAM)
	EXPORTWS=./$(PROGRAM) TIME_LIMIT=300 test/run test/recipes.py

symbols:
	test/symbols.sh

size:
	test/size.sh

# The parts without a socket, for every input up to a size, in all that C leaves undefined.
prove:
	TIME_LIMIT=7200 test/run test/prove.sh

lint:
	TIME_LIMIT=900 test/run test/lint.sh

cover:
	test/cover.sh

deps:
	@CC="$(CC)" CMOCKA="$(CMOCKA)" test/deps

deps-verify:
	@CC="$(CC)" CMOCKA="$(CMOCKA)" test/deps --verify

deps-all:
	@CC="$(CC)" CMOCKA="$(CMOCKA)" test/deps --all

# With BENCH="--peers", beside others, too: make deps-all brings them.
bench: $(PROGRAM) $(BUILD)/bench $(BUILD)/echo $(BUILD)/peer_lws
	$(BUILD)/bench --bars first --echo $(BUILD)/echo $(BENCH)

$(UNITS) $(SYSTEMS) $(CHAOS):
	@$(COMPILE_TEST) -o $@ test/$(@F).c $(CMOCKA) $(LDLIBS)

$(CLOCKED):
	@$(COMPILE_TEST) $(CLOCK_WRAP) -o $@ test/$(@F).c $(CMOCKA) $(LDLIBS)

$(FAULTS) $(BUILD)/test_faults:
	@$(COMPILE_TEST) $(FAULT_WRAP) -o $@ test/$(@F).c $(CMOCKA) $(LDLIBS)

$(REPLAYS) $(MODEL):
	@$(COMPILE_TEST) -o $@ test/$(@F).c $(LDLIBS)

$(EMBEDDED):
	@$(COMPILE_TEST) -DEXPORTWS_NO_MAIN -o $@ test/$(@F).c exportws.c $(CMOCKA) $(LDLIBS)

$(HOSTS):
	@$(COMPILE_TEST) -pthread -DEXPORTWS_NO_MAIN -o $@ test/$(@F).c exportws.c $(LDLIBS)

$(BUILD)/echo: test/echo.c $(SOURCE)
	@$(COMPILE_TEST) -DEXPORTWS_NO_MAIN -o $@ test/echo.c exportws.c $(LDLIBS)

$(UNITS) $(CLOCKED): $(SOURCE) test/test.h
$(FAULTS) $(BUILD)/test_faults: $(SOURCE) test/faults.h test/audit.h
$(REPLAYS): $(SOURCE) test/fuzz.h test/audit.h
$(MODEL): $(SOURCE) test/model.c test/audit.h
$(BUILD)/fuzz_frame: test/fuzz_frame.c
$(BUILD)/fuzz_head: test/fuzz_head.c
$(BUILD)/fuzz_session: test/fuzz_session.c
$(EMBEDDED) $(HOSTS): $(SOURCE)
$(BUILD)/embed: test/embed.c
$(BUILD)/worker: test/worker.c
$(SYSTEMS) $(CHAOS): test/server.h
$(BUILD)/chaos: test/chaos.c
$(BUILD)/test_api: test/test_api.c
$(BUILD)/test_arena: test/test_arena.c
$(BUILD)/test_bytes: test/test_bytes.c
$(BUILD)/test_chunk: test/test_chunk.c
$(BUILD)/test_clock: test/test_clock.c
$(BUILD)/test_digest: test/test_digest.c
$(BUILD)/test_doors: test/test_doors.c
$(BUILD)/test_faults: test/test_faults.c
$(BUILD)/test_frame: test/test_frame.c
$(BUILD)/test_head: test/test_head.c
$(BUILD)/test_java: test/test_java.c
$(BUILD)/test_history: test/test_history.c test/audit.h
$(BUILD)/test_log: test/test_log.c
$(BUILD)/test_messages: test/test_messages.c test/audit.h
$(BUILD)/test_options: test/test_options.c
$(BUILD)/test_reclaim: test/test_reclaim.c
$(BUILD)/test_rfc6455: test/test_rfc6455.c
$(BUILD)/test_rfc9112: test/test_rfc9112.c
$(BUILD)/test_start: test/test_start.c
$(BUILD)/test_trust: test/test_trust.c
$(BUILD)/test_utf8: test/test_utf8.c

$(BUILD)/bench: test/bench.c
	@mkdir -p $(BUILD)
	$(CC) $(STRICT) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ test/bench.c $(LDLIBS)

# Where there is libwebsockets.
$(BUILD)/peer_lws: test/peer_lws.c
	@mkdir -p $(BUILD)
	@if echo '#include <libwebsockets.h>' | $(CC) $(CPPFLAGS) -E - >/dev/null 2>&1; then \
		set -x; $(CC) $(STRICT) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ test/peer_lws.c \
			-lwebsockets $(LDLIBS); \
	fi

# The service's own options stand as OPTIONS="--capacity 2000 ..." in /etc/default/exportws.
$(BUILD)/exportws.service: Makefile
	@mkdir -p $(BUILD)
	@printf '%s\n' \
	'[Unit]' \
	'Description=WebSocket push server (exportws)' \
	'After=network.target' \
	'' \
	'[Service]' \
	'Type=notify' \
	'EnvironmentFile=-/etc/default/exportws' \
	'ExecStart=$(PREFIX)/bin/exportws $$OPTIONS' \
	'ExecReload=/bin/kill -HUP $$MAINPID' \
	'Restart=on-failure' \
	'TimeoutStopSec=15' \
	'LimitNOFILE=65536' \
	'DynamicUser=yes' \
	'RuntimeDirectory=exportws' \
	'NoNewPrivileges=yes' \
	'CapabilityBoundingSet=' \
	'ProtectSystem=strict' \
	'ProtectHome=yes' \
	'ProtectProc=invisible' \
	'ProtectClock=yes' \
	'ProtectHostname=yes' \
	'ProtectKernelLogs=yes' \
	'ProtectKernelModules=yes' \
	'ProtectKernelTunables=yes' \
	'ProtectControlGroups=yes' \
	'PrivateTmp=yes' \
	'PrivateDevices=yes' \
	'PrivateUsers=yes' \
	'RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6' \
	'RestrictNamespaces=yes' \
	'RestrictRealtime=yes' \
	'RestrictSUIDSGID=yes' \
	'LockPersonality=yes' \
	'MemoryDenyWriteExecute=yes' \
	'SystemCallArchitectures=native' \
	'SystemCallFilter=@system-service' \
	'SystemCallErrorNumber=EPERM' \
	'' \
	'[Install]' \
	'WantedBy=multi-user.target' >$@

install: $(PROGRAM) $(BUILD)/exportws.service
	umask 022 && mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include \
		$(DESTDIR)$(PREFIX)/share/exportws $(DESTDIR)$(PREFIX)/lib/systemd/system
	rm -f $(DESTDIR)$(PREFIX)/bin/exportws
	cp $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/exportws
	chmod 755 $(DESTDIR)$(PREFIX)/bin/exportws
	cp exportws.h $(DESTDIR)$(PREFIX)/include/exportws.h
	cp exportws.c exportws.h $(DESTDIR)$(PREFIX)/share/exportws
	cp $(BUILD)/exportws.service $(DESTDIR)$(PREFIX)/lib/systemd/system/exportws.service
	chmod 644 $(DESTDIR)$(PREFIX)/include/exportws.h \
		$(DESTDIR)$(PREFIX)/share/exportws/exportws.c \
		$(DESTDIR)$(PREFIX)/share/exportws/exportws.h \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/exportws.service

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/exportws $(DESTDIR)$(PREFIX)/include/exportws.h \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/exportws.service
	rm -rf $(DESTDIR)$(PREFIX)/share/exportws

clean:
	rm -rf exportws build

help:
	@echo 'make            builds ./exportws'
	@echo 'make run        builds it and starts it with its defaults and the demo page; ends with Ctrl-C'
	@echo 'make test       the C unit tests, a few seconds'
	@echo 'make check      every test, against the program itself too, JOBS=3 at a time'
	@echo 'make deps       installs what the tests need, where it is missing'
	@echo 'make bench      measures, and prints a table; with BENCH=--peers, beside other programs'
	@echo 'make install    to $$(DESTDIR)$$(PREFIX), which is /usr/local; make uninstall removes it'
	@echo 'make clean      removes what was built'
	@echo 'For those who change it, on Debian (make deps-all installs the tools):'
	@echo 'make check SAN=1   the same under ASan and UBSan (clang, gcc), MSan and valgrind'
	@echo 'make faults     every system call fails at every use: minutes'
	@echo 'make model      the server against a small model of its messages, STEPS=1000000 (SEED=...)'
	@echo 'make chaos      200 clients whose connections are cut, MESSAGES=50000 (SEED=...): minutes'
	@echo 'make fuzz       libFuzzer and AFL++, SECONDS=60 each'
	@echo 'make replay     the corpus of the fuzzers'
	@echo 'make hosts      the embedding examples: a million posts, ThreadSanitizer, helgrind'
	@echo 'make matrix     other compilers and machines (ROWS=...)'
	@echo 'make attack     a hostile minute, SECONDS=60, beside well-behaved clients'
	@echo 'make proxies    behind nginx and HAProxy, which end TLS with the lines of README'
	@echo 'make nodes      three nodes behind them: one dies, drains, comes back, is added'
	@echo 'make recipes    what README shows: other languages, Prometheus, init scripts, the image'
	@echo 'make symbols    what the library object exports and needs; make size: how big it is'
	@echo 'make lint       gcc -fanalyzer, clang --analyze, clang-tidy, cppcheck'
	@echo 'make verify     all of these that need tools, two lanes at a time: ten minutes'
	@echo 'make prove      Frama-C shows that what reads bytes from outside has no undefined step'
	@echo 'make cover      the share of lines and branches that the tests reach: fails below 100 %'
	@echo 'Set CC, CFLAGS, CPPFLAGS, LDFLAGS, LDLIBS, PREFIX and DESTDIR as you need.'

.PHONY: all run test check programs binaries list-inside list-alone list-outside check-san-0 \
	check-san-1 faults model chaos fuzz replay hosts matrix attack proxies nodes recipes symbols size \
	lint cover prove verify deps deps-verify deps-all bench install uninstall clean help
