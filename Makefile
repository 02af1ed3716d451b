# exportws: one C file and its header. POSIX make: works with GNU make and BSD make.
.POSIX:
.SUFFIXES:

CC       = cc
CFLAGS   = -O2
CPPFLAGS =
LDFLAGS  =
LDLIBS   =
PREFIX   = /usr/local
DESTDIR  =

WARNINGS = -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes
STRICT   = -std=c99 -pedantic $(WARNINGS)
SOURCE   = exportws.c exportws.h

# Tests take system calls over by name, which _FORTIFY_SOURCE would hide from them.
TEST_FLAGS = -g -U_FORTIFY_SOURCE -Wno-overlength-strings
CMOCKA = `pkg-config --cflags --libs cmocka 2>/dev/null || \
	echo -I/usr/local/include -L/usr/local/lib -lcmocka`

# One binary for each section of exportws.c, which it includes; then those that drive the program.
UNITS    = build/test_bytes build/test_digest build/test_utf8 build/test_head build/test_chunk \
	build/test_frame
SYSTEMS  = build/test_java build/test_reclaim build/test_doors
SCRIPTS  = test/options.py test/curl.sh test/websockets.py test/export.sh

all: exportws

exportws: $(SOURCE)
	$(CC) $(STRICT) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ exportws.c $(LDLIBS)

run: exportws
	./exportws

test: $(UNITS)
	test/run $(UNITS)

check: exportws $(UNITS) $(SYSTEMS)
	PATH="`pwd`/build/python/bin:$$PATH" test/run $(UNITS) $(SYSTEMS) $(SCRIPTS)

deps:
	@CC="$(CC)" CMOCKA="$(CMOCKA)" test/deps

bench: exportws build/bench
	build/bench --bars first $(BENCH)

$(UNITS) $(SYSTEMS):
	@mkdir -p build
	$(CC) $(STRICT) $(TEST_FLAGS) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) \
		-o $@ test/$(@F).c $(CMOCKA) $(LDLIBS)

$(UNITS): $(SOURCE) test/test.h
$(SYSTEMS): test/server.h
build/test_bytes: test/test_bytes.c
build/test_chunk: test/test_chunk.c
build/test_digest: test/test_digest.c
build/test_doors: test/test_doors.c
build/test_frame: test/test_frame.c
build/test_head: test/test_head.c
build/test_java: test/test_java.c
build/test_reclaim: test/test_reclaim.c
build/test_utf8: test/test_utf8.c

build/bench: test/bench.c
	@mkdir -p build
	$(CC) $(STRICT) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ test/bench.c $(LDLIBS)

install: exportws
	mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include \
		$(DESTDIR)$(PREFIX)/share/exportws
	rm -f $(DESTDIR)$(PREFIX)/bin/exportws
	cp exportws $(DESTDIR)$(PREFIX)/bin/exportws
	chmod 755 $(DESTDIR)$(PREFIX)/bin/exportws
	cp exportws.h $(DESTDIR)$(PREFIX)/include/exportws.h
	cp exportws.c exportws.h $(DESTDIR)$(PREFIX)/share/exportws
	chmod 644 $(DESTDIR)$(PREFIX)/include/exportws.h \
		$(DESTDIR)$(PREFIX)/share/exportws/exportws.c \
		$(DESTDIR)$(PREFIX)/share/exportws/exportws.h

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/exportws $(DESTDIR)$(PREFIX)/include/exportws.h
	rm -rf $(DESTDIR)$(PREFIX)/share/exportws

clean:
	rm -rf exportws build

help:
	@echo 'make            builds ./exportws'
	@echo 'make run        builds it and starts it with its defaults; ends with Ctrl-C'
	@echo 'make test       the C unit tests, a few seconds'
	@echo 'make check      every test, against the program itself too'
	@echo 'make deps       installs what the tests need, where it is missing'
	@echo 'make bench      measures, and prints a table'
	@echo 'make install    to $$(DESTDIR)$$(PREFIX), which is /usr/local; make uninstall removes it'
	@echo 'make clean      removes what was built'
	@echo 'Set CC, CFLAGS, CPPFLAGS, LDFLAGS, LDLIBS, PREFIX and DESTDIR as you need.'

.PHONY: all run test check deps bench install uninstall clean help
