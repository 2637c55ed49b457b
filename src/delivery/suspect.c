/*
 * Suspects: events at which workers crash.
 *
 * A crash of the worker is a crash of the server, and an event that brings one about would do so again, as soon as the next worker comes to it.  So the handler of SIGSEGV and its like appends to
 * a file in the data directory what was being handled: which event, for which subscription, or read from the log.  The next worker reads the file.  An event at which workers have crashed
 * twice is condemned: it is not read, or not sent to that subscription, any more, and becomes a dead letter (internal).
 *
 * A crash inside libcurl cannot be put down to one of many requests.  After two such crashes the worker is careful for a while: it has one request under way at a time, and the next crash has a name.
 *
 * As long as all is well there is no file, and what is being handled costs some stores per event.  SIGKILL, shutdown and loss of power leave nothing: they are nobody's fault.  After ten minutes without a crash
 * the file is removed.
 *
 * The handler allocates nothing, waits for nothing, and lets the process die as it would have died (with its core).
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "event_log.h"
#include "suspect.h"

#define CRASHES 2				/* at one event condemn it; without a name, they make us careful */
#define RECORDS_AT_MOST 256		/* that are read, of the newest */
#define CARE_S 60				/* how long we are careful; doubled by each further crash without a name … */
#define CARE_AT_MOST_S 600		/* … to this */
#define FORGET_S 600
#define NOBODY (-1)
#define READING 0				/* in place of a subscription: the event was being read */

typedef struct Crash
{
	int64		epoch;
	int32		subscription;	/* READING, NOBODY */
	int32		signal;			/* 0: an error */
	pg_uuid_t	event_id;
	int64		at;				/* time(): for people */
} Crash;

static char path[MAXPGPATH];
static int64 epoch;
static volatile int32 handled_for = NOBODY;
static pg_uuid_t handled;
static Crash *condemned = NULL;
static int	n_condemned = 0;
static TimestampTz careful_until = 0;
static TimestampTz forget_at = DT_NOEND;

/* ---- writing: also from a signal handler ---- */

static void
append(int signal)
{
	Crash		crash = {.epoch = epoch, .subscription = handled_for, .signal = signal, .event_id = handled, .at = (int64) time(NULL)};
	int			fd;

	if (outbox_log_reading != NULL)
	{
		crash.subscription = READING;
		crash.event_id = *outbox_log_reading;
	}
	fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	if (write(fd, &crash, sizeof(crash)) != sizeof(crash))
		(void) unlink(path);	/* half a record would spoil those that follow */
	close(fd);
}

/* A PANIC aborts too, in a critical section; that is the server's trouble, not an event's. */
static void
on_crash(int signal)
{
	if (CritSectionCount == 0)
		append(signal);
	raise(signal);				/* the handler is gone: this one kills */
}

static void
install_handlers(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
	struct sigaction action = {.sa_handler = on_crash, .sa_flags = SA_RESETHAND | SA_NODEFER};

	sigemptyset(&action.sa_mask);
	for (int i = 0; i < lengthof(signals); i++)
		sigaction(signals[i], &action, NULL);
}

void
outbox_suspect_blame(void)
{
	append(0);
}

/* ---- reading ---- */

static int
read_crashes(Crash *crashes)
{
	int			fd = BasicOpenFile(path, O_RDONLY | PG_BINARY);
	off_t		size;
	ssize_t		got;

	if (fd < 0)
		return 0;
	size = lseek(fd, 0, SEEK_END) / (off_t) sizeof(Crash);
	got = pread(fd, crashes, RECORDS_AT_MOST * sizeof(Crash), Max(size - RECORDS_AT_MOST, 0) * (off_t) sizeof(Crash));
	close(fd);
	return got < 0 ? 0 : (int) (got / (ssize_t) sizeof(Crash));
}

static bool
is_same(const Crash *crash, int32 subscription, const pg_uuid_t *event_id)
{
	return crash->epoch == epoch && crash->subscription == subscription && memcmp(&crash->event_id, event_id, sizeof(pg_uuid_t)) == 0;
}

static bool
is_shunned(const pg_uuid_t *log_id)
{
	return outbox_suspect_condemned(READING, log_id);
}

static void
condemn(const Crash *crash)
{
	if (outbox_suspect_condemned(crash->subscription, &crash->event_id))
		return;
	condemned[n_condemned++] = *crash;
	if (crash->subscription == READING)
		outbox_log_shun = is_shunned;
	ereport(WARNING,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("delivery workers have ended twice while they handled the same event: it becomes a dead letter"),
			 errdetail("Event %s, subscription %d (0: while reading it).",
					   DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&crash->event_id))), crash->subscription),
			 errhint("Please report this, with a stack trace if there is one.")));
}

static void
judge(const Crash *crashes, int n)
{
	int			nameless = 0;

	for (int i = 0; i < n; i++)
	{
		int			same = 0;

		if (crashes[i].epoch != epoch)
			continue;
		if (crashes[i].subscription == NOBODY)
			nameless += crashes[i].signal != 0;
		else
			for (int j = 0; j <= i; j++)
				same += is_same(&crashes[j], crashes[i].subscription, &crashes[i].event_id);
		if (same >= CRASHES)
			condemn(&crashes[i]);
	}
	if (nameless >= CRASHES)
	{
		int			seconds = CARE_S << Min(nameless - CRASHES, 4);

		careful_until = GetCurrentTimestamp() + Min(seconds, CARE_AT_MOST_S) * USECS_PER_SEC;
		ereport(LOG,
				(errmsg("delivery workers have crashed %d times: for a while there will be one request at a time", nameless)));
	}
}

void
outbox_suspect_start(Oid database, int64 of_epoch)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	Crash	   *crashes = palloc(RECORDS_AT_MOST * sizeof(Crash));
	int			n;

	snprintf(path, sizeof(path), "outbox.crashes.%u", database);
	epoch = of_epoch;
	n = read_crashes(crashes);
	if (n > 0)
	{
		condemned = palloc(n * sizeof(Crash));
		judge(crashes, n);
		forget_at = GetCurrentTimestamp() + FORGET_S * USECS_PER_SEC;
	}
	pfree(crashes);
	MemoryContextSwitchTo(old);
	install_handlers();
}

void
outbox_suspect_forget(TimestampTz now)
{
	if (now < forget_at || now < careful_until)
		return;
	forget_at = DT_NOEND;
	n_condemned = 0;
	outbox_log_shun = NULL;
	(void) unlink(path);
}

/* ---- asked while working ---- */

void
outbox_suspect_handle(int32 subscription, const pg_uuid_t *event_id)
{
	handled = *event_id;
	handled_for = subscription;
}

void
outbox_suspect_nobody(void)
{
	handled_for = NOBODY;
}

bool
outbox_suspect_condemned(int32 subscription, const pg_uuid_t *event_id)
{
	for (int i = 0; i < n_condemned; i++)
	{
		if (is_same(&condemned[i], subscription, event_id))
			return true;
	}
	return false;
}

bool
outbox_suspect_careful(TimestampTz now)
{
	return careful_until != 0 && now < careful_until;
}
