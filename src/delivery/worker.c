/*
 * The delivery worker: its life as a process.
 *
 * One per armed database, started and restarted by the launcher.  Waits on its latch, on the network and on a timer; between turns it holds no lock, no snapshot and
 * no transaction.  An error in a turn costs that turn.  It goes at once when a command needs it gone, when it is disarmed, or at shutdown, and then
 * first writes down what it knows to be done.
 *
 * It must never exit with anything but 0 or 1: the postmaster takes everything else for a crash of the whole cluster.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "fmgr.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timestamp.h"

#include "bell.h"
#include "compat.h"
#include "fault.h"
#include "settings.h"
#include "turn.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void outbox_worker_main(Datum main_arg);

#define ERRORS_IN_A_ROW 20		/* then a fresh process is worth a try */
#define REST_MS			50

static OutboxDatabase *database;
static int	errors = 0;

static void
pin_settings(void)
{
	static const OutboxPinned pinned[] = {
		{"lock_timeout", "200ms"},
		{"row_security", "off"},
		{"zero_damaged_pages", "off"},
		{"session_replication_role", "origin"},
		{"synchronous_commit", "off"},
		{"max_parallel_workers_per_gather", "0"},
		{"jit", "off"}
	};

	outbox_settings_pin(pinned, lengthof(pinned));
}

static WaitEventSet *
make_wait_set(void)
{
	WaitEventSet *set = OutboxCreateWaitEventSet(3);

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(set, WL_SOCKET_READABLE, outbox_turn_descriptor(), NULL, NULL);
	return set;
}

/*
 * The last words.  While they are written the pending termination is put off, so that it does not interrupt them; lock_timeout bounds them.
 */
static void
last_words(void)
{
	bool		dying = ProcDiePending;

	ProcDiePending = false;
	PG_TRY();
	{
		outbox_turn_finish();
	}
	PG_CATCH();
	{
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	if (dying)
	{
		ProcDiePending = true;
		InterruptPending = true;
	}
}

static void
leave(OutboxWorkerEnd end, const char *why)
{
	OUTBOX_FAULT("worker-before-last-words");
	last_words();
	CHECK_FOR_INTERRUPTS();
	ereport(LOG,
			(errmsg("%s ends: %s", MyBgworkerEntry->bgw_name, why)));
	outbox_bell_set_end(database, end);
	proc_exit(0);
}

/* An error in a turn: report it, for operators too, and go on with the next. */
static void
recover(void)
{
	bool		blameless = geterrcode() == ERRCODE_OUT_OF_MEMORY;

	HOLD_INTERRUPTS();
	error_context_stack = NULL;
	EmitErrorReport();
	LWLockReleaseAll();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(TopMemoryContext);
	{
		ErrorData  *error = CopyErrorData();

		LWLockAcquire(&database->lock, LW_EXCLUSIVE);
		strlcpy(database->status.error, error->message, sizeof(database->status.error));
		database->status.error_at = GetCurrentTimestamp();
		LWLockRelease(&database->lock);
		FreeErrorData(error);
	}
	FlushErrorState();
	pgstat_report_activity(STATE_IDLE, "recovering from an error");
	RESUME_INTERRUPTS();
	if (outbox_turn_must_end(blameless))
		ereport(FATAL,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("outbox delivery worker ends, to begin again at its cursors"),
				 errdetail("An error left what it knows half changed.")));
	if (++errors >= ERRORS_IN_A_ROW)
		ereport(FATAL,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("outbox delivery worker gives up after %d errors in a row", errors)));
	outbox_turn_failed();
}

/*
 * Nobody is served sooner by a turn while there is no subscription.  So the latch stays set for a while, and producers need not wake the worker at each commit.  Not if it
 * was somebody else who did; and whoever does meanwhile with more than the latch, a signal, ends it.
 */
static void
rest(long wait)
{
	if (!outbox_turn_is_awaited() && !InterruptPending && !ConfigReloadPending && !outbox_bell_must_yield(database))
		pg_usleep(Min(wait, REST_MS) * 1000L);
}

static void
loop(void)
{
	WaitEventSet *set = make_wait_set();
	sigjmp_buf	on_error;
	static uint32 reasons = OUTBOX_RING_EVENTS; /* survives an error */

	if (sigsetjmp(on_error, 1) != 0)
		recover();
	PG_exception_stack = &on_error;

	for (;;)
	{
		WaitEvent	event;
		long		wait;

		if (ProcDiePending)
			last_words();
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			outbox_turn_reloaded();
		}
		if (outbox_bell_must_yield(database))
			leave(OUTBOX_END_YIELD, "a command needs the database for itself");
		if (!outbox_enabled)
			leave(OUTBOX_END_DISARMED, "outbox.enabled is off");
		if (outbox_turn_clock_went_back())
			leave(OUTBOX_END_YIELD, "the clock was set back, and another one begins with the new time");

		reasons |= outbox_bell_answer(database);
		wait = outbox_turn_run(reasons);
		reasons = 0;
		errors = 0;
		if (outbox_turn_over())
			leave(OUTBOX_END_DISARMED, "delivery is stopped here");
		if (wait == 0)
			continue;

		pgstat_report_activity(STATE_IDLE, "waiting for events");
		if (WaitEventSetWait(set, wait, &event, 1, OutboxWaitEvent("OutboxDelivery")) == 1 && (event.events & WL_LATCH_SET))
			rest(wait);
		ResetLatch(MyLatch);
	}
}

void
outbox_worker_main(Datum main_arg)
{
	if (outbox_abi() != OUTBOX_ABI)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("library outbox_delivery-%s does not fit the preloaded library outbox", OUTBOX_VERSION),
				 errhint("Restart the server so that it loads the installed version.")));

	database = outbox_bell_slot(DatumGetInt32(main_arg));
	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	if (database == NULL || !OidIsValid(database->database) || !outbox_bell_attach(database))
		proc_exit(0);

	pin_settings();
	BackgroundWorkerInitializeConnectionByOid(database->database, InvalidOid, BGWORKER_BYPASS_ALLOWCONN);
	pgstat_report_appname("outbox delivery worker");

	database->status.started_at = GetCurrentTimestamp();
	OUTBOX_FAULT("worker-before-start");
	outbox_turn_start(database);
	if (outbox_turn_over())
		leave(OUTBOX_END_DISARMED, "delivery is not started here");
	ereport(LOG,
			(errmsg("%s started", MyBgworkerEntry->bgw_name)));
	loop();
}
