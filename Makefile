# outbox: two libraries and one SQL script.  PGXS allows one MODULE_big, so the second library,
# outbox_delivery, has its own makefile and is built and installed along with the first.

EXTENSION = outbox
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" outbox.control)

MODULE_big = outbox
OBJS = \
	src/await.o \
	src/bell.o \
	src/call.o \
	src/capture.o \
	src/capture_arguments.o \
	src/catalog.o \
	src/cipher.o \
	src/copies.o \
	src/dedup.o \
	src/durable.o \
	src/enqueue.o \
	src/event_id.o \
	src/event_log.o \
	src/expiry.o \
	src/field.o \
	src/filter.o \
	src/guard.o \
	src/headers.o \
	src/held.o \
	src/inbox.o \
	src/keyring.o \
	src/launcher.o \
	src/limit.o \
	src/lookup.o \
	src/module.o \
	src/once.o \
	src/operator.o \
	src/pattern.o \
	src/pull.o \
	src/ring.o \
	src/schedule.o \
	src/settings.o \
	src/snapshot.o \
	src/table.o \
	src/upkeep.o \
	src/vault.o \
	src/webhook.o \
	src/writer.o \
	src/yield.o

DATA = sql/outbox--0.1.0.sql
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers
# PostgreSQL's own options are those of the compiler that it was built with
PG_CFLAGS += $(if $(findstring clang,$(CC)),-Wno-ignored-optimization-argument -Wno-ignored-attributes -Wno-unknown-warning-option)
PG_CPPFLAGS = -DOUTBOX_VERSION=\"$(EXTVERSION)\" -I$(srcdir)/src
SHLIB_LINK = -lcrypto

# make FAULTS=1 builds libraries that can be made to fail (src/fault.h), for tests only
ifdef FAULTS
OBJS += src/fault.o
PG_CPPFLAGS += -DOUTBOX_FAULTS
endif

REGRESS = $(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test
ISOLATION = $(patsubst test/specs/%.spec,%,$(sort $(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test --outputdir=.
TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

DELIVERY = $(MAKE) -C $(srcdir)/src/delivery PG_CONFIG="$(PG_CONFIG)" EXTVERSION="$(EXTVERSION)"

.PHONY: delivery delivery-install delivery-uninstall delivery-clean
all: delivery
delivery:
	+$(DELIVERY) all
install: delivery-install
delivery-install: delivery
	+$(DELIVERY) install DESTDIR="$(DESTDIR)"
uninstall: delivery-uninstall
delivery-uninstall:
	+$(DELIVERY) uninstall DESTDIR="$(DESTDIR)"
clean: delivery-clean
delivery-clean:
	+$(DELIVERY) clean

$(OBJS): $(wildcard $(srcdir)/src/*.h)

# One test in seconds: make try T=NAME (see test/one).
.PHONY: try
try:
	$(srcdir)/test/one $(T)
