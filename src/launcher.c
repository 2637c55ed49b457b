/*
 * The launcher: a delivery worker for every armed database, and no second one.
 *
 * Which databases are armed is written in pg_db_role_setting, a shared catalog that a process without a database cannot read.  So the launcher
 * starts a *lister*, a short-lived worker in any database, which marks the slots of armed databases as wanted and goes.  It does so
 * at the start, whenever a database was armed or disarmed, and when the configuration was read again; start() also marks its slot itself.
 *
 * Delivery workers are never restarted by the postmaster: after a crash of the server it would restart them, the launcher would start them
 * again, and there would be two.  The launcher alone restarts, and how a worker ended says when: after an error with back-off, after giving way to a
 * command when that is over, after finding itself not armed when somebody says something new.
 *
 * A worker or lister that cannot be started, or dies early, costs a log line and a wait; it never takes the launcher down, and never becomes a loop.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "bell.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "copies.h"
#include "fault.h"
#include "launcher.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "settings.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Milliseconds. */
#define BACKOFF_MIN 1000
#define BACKOFF_MAX 60000
#define HEALTHY_LIFE 60000		/* a worker that lived longer starts again with the shortest back-off */
#define LISTER_RETRY 5000
#define REGISTER_RETRY 5000

#define NO_SLOT "no free background worker slot"

/* What the launcher knows about a worker that it started; one per slot. */
typedef struct WorkerLife
{
	Oid			database;		/* InvalidOid: none was started here */
	BackgroundWorkerHandle *handle; /* NULL: none is running */
	TimestampTz started_at;
	TimestampTz not_before;		/* of the next start */
	int			backoff;		/* milliseconds; 0: the last end was no error */
	uint64		told;			/* OutboxLauncher.told when it was started, or failed */
} WorkerLife;

/* What the launcher knows about its lister. */
typedef struct ListerLife
{
	BackgroundWorkerHandle *handle; /* NULL: none is running */
	TimestampTz not_before;
	bool		due;
	uint64		told;			/* OutboxLauncher.told that it was started for */
	uint64		listed;			/* OutboxLauncher.listed before its start */
	bool		troubled;		/* that it cannot be started has been logged */
} ListerLife;

static OutboxLauncher *launcher;
static WorkerLife *lives;
static ListerLife lister;
static MemoryContext launcher_context;

/* When the launcher must look again, unless something happens before. */
static TimestampTz wake_at;

/* ---- registration ---- */

void
outbox_launcher_register(void)
{
	BackgroundWorker worker = {
		.bgw_name = "outbox launcher",
		.bgw_type = "outbox launcher",
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = 5,
		.bgw_library_name = "$libdir/outbox",
		.bgw_function_name = "outbox_launcher_main"
	};

	RegisterBackgroundWorker(&worker);
}

/* A worker of which the postmaster forgets everything when it ends, and tells us. */
static BackgroundWorker
passing_worker(const char *library, const char *function, Datum arg)
{
	BackgroundWorker worker = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION | BGWORKER_INTERRUPTIBLE,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_main_arg = arg,
		.bgw_notify_pid = MyProcPid
	};

	strlcpy(worker.bgw_library_name, library, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	return worker;
}

/* The handle outlives the turn; NULL when there is no slot for a worker. */
static BackgroundWorkerHandle *
start_passing_worker(BackgroundWorker *worker)
{
	MemoryContext turn_context = MemoryContextSwitchTo(launcher_context);
	BackgroundWorkerHandle *handle = NULL;

	if (!RegisterDynamicBackgroundWorker(worker, &handle))
		handle = NULL;
	MemoryContextSwitchTo(turn_context);
	return handle;
}

static bool
has_ended(BackgroundWorkerHandle *handle)
{
	pid_t		pid;

	return GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED;
}

/* ---- time ---- */

static void
wake_no_later_than(TimestampTz at)
{
	if (at < wake_at)
		wake_at = at;
}

static TimestampTz
after(TimestampTz now, int milliseconds)
{
	return TimestampTzPlusMilliseconds(now, milliseconds);
}

/* Is it still ahead?  What is further away than any pause lasts was ahead on a clock that has been set back. */
static bool
is_ahead(TimestampTz at, TimestampTz now)
{
	return now < at && at <= after(now, BACKOFF_MAX);
}

/* ---- the lister, from the launcher's side ---- */

/* Any database will do; template1 is nearly always there, and has nothing of a user's in it. */
static Oid
listers_database(void)
{
	Relation	databases = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(databases, 0, NULL);
	HeapTuple	tuple;
	Oid			found = InvalidOid;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (database_is_invalid_form(database))
			continue;
		if (database->oid == Template1DbOid || !OidIsValid(found))
			found = database->oid;
	}
	table_endscan(scan);
	table_close(databases, AccessShareLock);
	return found;
}

/* For health(): no database can be said to be in trouble before one was listed. */
static void
set_lister_trouble(const char *trouble)
{
	LWLockAcquire(&launcher->lock, LW_EXCLUSIVE);
	strlcpy(launcher->trouble, trouble, sizeof(launcher->trouble));
	LWLockRelease(&launcher->lock);
}

static void
start_lister(TimestampTz now)
{
	BackgroundWorker worker;
	Oid			database;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	database = listers_database();
	CommitTransactionCommand();

	worker = passing_worker("$libdir/outbox", "outbox_lister_main", ObjectIdGetDatum(database));
	strlcpy(worker.bgw_name, "outbox lister", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "outbox lister", BGW_MAXLEN);

	lister.told = pg_atomic_read_u64(&launcher->told);
	lister.listed = pg_atomic_read_u64(&launcher->listed);
	lister.handle = start_passing_worker(&worker);
	lister.due = lister.handle == NULL;
	lister.not_before = after(now, LISTER_RETRY);
	set_lister_trouble(lister.handle == NULL ? NO_SLOT : "");
	if (lister.handle == NULL && !lister.troubled)
		ereport(WARNING,
				errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				errmsg("outbox cannot find out which databases are to deliver: no free background worker slot"),
				errhint("You might need to increase max_worker_processes."));
	lister.troubled = lister.handle == NULL;
}

static bool
listers_are_held(void)
{
	bool		held;

	LWLockAcquire(&launcher->lock, LW_SHARED);
	held = launcher->holds > 0;
	LWLockRelease(&launcher->lock);
	return held;
}

/* Starts a lister when one is due, and sees to it that one reaches its end. */
static void
tend_lister(TimestampTz now)
{
	if (lister.handle != NULL)
	{
		if (!has_ended(lister.handle))
			return;
		pfree(lister.handle);
		lister.handle = NULL;
		if (pg_atomic_read_u64(&launcher->listed) == lister.listed)
			lister.due = true;
		else
			lister.not_before = 0;
	}

	if (pg_atomic_read_u64(&launcher->told) != lister.told)
		lister.due = true;

	/* who holds listers off wakes us when that is over */
	if (!lister.due || !outbox_enabled || listers_are_held())
	{
		if (lister.troubled && !outbox_enabled)
		{
			set_lister_trouble("");
			lister.troubled = false;
		}
		return;
	}
	if (is_ahead(lister.not_before, now))
		wake_no_later_than(lister.not_before);
	else
		start_lister(now);
}

/* ---- delivery workers ---- */

/* Why there is no worker; "": no reason to complain. */
static void
set_trouble(OutboxDatabase *slot, const char *trouble)
{
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	strlcpy(slot->trouble, trouble, sizeof(slot->trouble));
	LWLockRelease(&slot->lock);
}

/* Name of a database, in the memory of this turn; NULL when it is gone. */
static char *
database_name(Oid database)
{
	MemoryContext turn_context = CurrentMemoryContext;
	char	   *name;

	StartTransactionCommand();
	name = get_database_name(database);
	if (name != NULL)
		name = MemoryContextStrdup(turn_context, name);
	CommitTransactionCommand();
	MemoryContextSwitchTo(turn_context);
	return name;
}

static void
start_worker(WorkerLife *life, OutboxDatabase *slot, int number, Oid database, TimestampTz now)
{
	BackgroundWorker worker;
	char	   *name = database_name(database);
	bool		was_troubled = slot->trouble[0] != '\0';	/* only we write it */

	if (name == NULL)
	{
		outbox_bell_free(database);
		return;
	}

	worker = passing_worker("$libdir/outbox_delivery-" OUTBOX_VERSION, "outbox_worker_main", Int32GetDatum(number));
	snprintf(worker.bgw_name, BGW_MAXLEN, "outbox delivery worker for database \"%s\"", name);
	strlcpy(worker.bgw_type, "outbox delivery worker", BGW_MAXLEN);

	life->told = pg_atomic_read_u64(&launcher->told);
	life->started_at = now;
	OUTBOX_FAULT("launch-before-worker");
	life->handle = start_passing_worker(&worker);
	OUTBOX_FAULT("launch-after-worker");
	if (life->handle == NULL)
	{
		life->not_before = after(now, REGISTER_RETRY);
		wake_no_later_than(life->not_before);
		if (was_troubled)
			return;
		set_trouble(slot, NO_SLOT);
		ereport(WARNING,
				errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				errmsg("outbox cannot deliver from database \"%s\": no free background worker slot", name),
				errhint("You might need to increase max_worker_processes."));
	}
	else if (was_troubled)
		set_trouble(slot, "");
}

/* Draws the conclusion from a worker's end. */
static void
judge_end(WorkerLife *life, OutboxWorkerEnd end, TimestampTz now)
{
	switch (end)
	{
		case OUTBOX_END_ERROR:
			if (life->backoff == 0 || TimestampDifferenceExceeds(life->started_at, now, HEALTHY_LIFE))
				life->backoff = BACKOFF_MIN;
			else
				life->backoff = Min(life->backoff * 2, BACKOFF_MAX);
			life->not_before = after(now, life->backoff);
			life->told = pg_atomic_read_u64(&launcher->told);
			return;
		case OUTBOX_END_DISARMED:

			/* what it found may be older than what was said since it began */
			if (life->told != pg_atomic_read_u64(&launcher->told))
				lister.due = true;
			break;
		case OUTBOX_END_YIELD:
			break;
	}
	life->backoff = 0;
	life->not_before = 0;
}

/* The postmaster says that our worker has ended. */
static void
worker_has_ended(WorkerLife *life, OutboxDatabase *slot, TimestampTz now)
{
	OutboxWorkerEnd end;
	bool		ours;

	pfree(life->handle);
	life->handle = NULL;

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	end = slot->worker_end;

	/* it may have found the worker of a previous launcher, or its database is gone */
	ours = slot->worker_pid == 0 && slot->database == life->database;
	if (ours && end == OUTBOX_END_DISARMED)
		slot->wanted = false;
	LWLockRelease(&slot->lock);

	if (ours)
		judge_end(life, end, now);
}

/* Gives one slot what it needs. */
static void
tend_slot(int number, TimestampTz now)
{
	OutboxDatabase *slot = outbox_bell_slot(number);
	WorkerLife *life = &lives[number];
	Oid			database;
	bool		armed;
	bool		wanted;

	if (life->handle != NULL)
	{
		if (!has_ended(life->handle))
			return;
		worker_has_ended(life, slot, now);
	}

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	database = slot->database;
	armed = OidIsValid(database) && slot->wanted;
	wanted = armed && slot->yield == 0 && slot->worker_pid == 0;
	if (wanted)
		slot->worker_end = OUTBOX_END_ERROR;	/* should it not even come to attach itself */
	LWLockRelease(&slot->lock);

	if (life->database != database)
		*life = (WorkerLife) {.database = database};
	if ((!armed || !outbox_enabled) && slot->trouble[0] != '\0')
		set_trouble(slot, "");	/* only we write it; nobody misses a worker any more */
	if (!wanted || !outbox_enabled)
		return;

	/* whoever says something new does not want to wait */
	if (is_ahead(life->not_before, now) && life->told == pg_atomic_read_u64(&launcher->told))
		wake_no_later_than(life->not_before);
	else if (!outbox_copies_quiet())
		start_worker(life, slot, number, database, now);
}

/* ---- the launcher's life ---- */

static void
pin_settings(void)
{
	static const OutboxPinned pinned[] = {
		{"lock_timeout", "0"},
		{"synchronous_commit", "local"} /* without waiting for standbys that a copy may not have */
	};

	outbox_settings_pin(pinned, lengthof(pinned));
}

static void
detach_launcher(int code, Datum arg)
{
	pg_atomic_write_u32(&launcher->proc, OUTBOX_NO_PROC);
	LWLockAcquire(&launcher->lock, LW_EXCLUSIVE);
	launcher->pid = 0;
	LWLockRelease(&launcher->lock);
}

static void
attach_launcher(void)
{
	launcher = outbox_bell_launcher();
	on_shmem_exit(detach_launcher, (Datum) 0);
	LWLockAcquire(&launcher->lock, LW_EXCLUSIVE);
	launcher->pid = MyProcPid;
	LWLockRelease(&launcher->lock);
	pg_atomic_write_u32(&launcher->proc, OutboxMyProcNumber());
}

/* What an error may have left behind; as autovacuum's launcher does it, as far as it concerns a process that only reads pg_database. */
static void
recover(void)
{
	error_context_stack = NULL;
	HOLD_INTERRUPTS();
	EmitErrorReport();
	AbortCurrentTransaction();
	LWLockReleaseAll();
	pgstat_report_wait_end();
	MemoryContextSwitchTo(launcher_context);
	FlushErrorState();
	RESUME_INTERRUPTS();
	pgstat_report_activity(STATE_IDLE, NULL);

	/* not filling the log as fast as we can */
	(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, BACKOFF_MIN, PG_WAIT_EXTENSION);
}

static void
reload_if_told(void)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);

	/* outbox.enabled may be on again: databases that it disarmed are listed anew */
	pg_atomic_fetch_add_u64(&launcher->told, 1);
}

static void
wait_for_something(void)
{
	long		timeout = -1;
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

	if (wake_at != DT_NOEND)
	{
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake_at);
		events |= WL_TIMEOUT;
	}
	(void) WaitLatch(MyLatch, events, timeout, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
}

void
outbox_launcher_main(Datum main_arg)
{
	sigjmp_buf	recovery;
	MemoryContext turn_context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	pin_settings();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	launcher_context = AllocSetContextCreate(TopMemoryContext, "outbox launcher", ALLOCSET_DEFAULT_SIZES);
	turn_context = AllocSetContextCreate(launcher_context, "outbox launcher turn", ALLOCSET_DEFAULT_SIZES);
	lives = MemoryContextAllocZero(launcher_context, outbox_bell_slots() * sizeof(WorkerLife));
	lister.due = true;
	attach_launcher();
	pgstat_report_appname("outbox launcher");

	if (sigsetjmp(recovery, 1) != 0)
		recover();
	PG_exception_stack = &recovery;

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();

		CHECK_FOR_INTERRUPTS();
		reload_if_told();

		MemoryContextSwitchTo(turn_context);
		wake_at = DT_NOEND;
		for (int i = 0; i < outbox_bell_slots(); i++)
			tend_slot(i, now);
		tend_lister(now);		/* the end of a worker can make one due */
		MemoryContextReset(turn_context);

		pgstat_report_activity(STATE_IDLE, NULL);
		wait_for_something();
	}
}

/* ---- the lister ---- */

static void
leave_listing(int code, Datum arg)
{
	LWLockAcquire(&launcher->lock, LW_EXCLUSIVE);
	launcher->lister_pid = 0;
	LWLockRelease(&launcher->lock);
	ConditionVariableBroadcast(&launcher->lister_gone);
}

/* False when a command does not want a lister connected to any database; it wakes the launcher when it is done. */
static bool
enter_listing(void)
{
	bool		may;

	launcher = outbox_bell_launcher();
	LWLockAcquire(&launcher->lock, LW_EXCLUSIVE);
	may = launcher->holds == 0 && launcher->lister_pid == 0;
	if (may)
		launcher->lister_pid = MyProcPid;
	LWLockRelease(&launcher->lock);
	if (may)
		on_shmem_exit(leave_listing, (Datum) 0);
	return may;
}

/* Does this array of "name=value" set outbox.armed to something? */
static bool
sets_armed(ArrayType *settings)
{
	static const char prefix[] = "outbox.armed=";
	Datum	   *elements;
	int			n;
	bool		found = false;

	deconstruct_array(settings, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	for (int i = 0; i < n && !found; i++)
	{
		char	   *setting = TextDatumGetCString(elements[i]);

		found = pg_strncasecmp(setting, prefix, sizeof(prefix) - 1) == 0 && setting[sizeof(prefix) - 1] != '\0';
	}
	return found;
}

/* The databases (OIDs) for which outbox.armed is set; settings of a role do not count. */
static List *
armed_databases(void)
{
	Relation	settings = table_open(DbRoleSettingRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(settings, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	List	   *armed = NIL;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_db_role_setting setting = (Form_pg_db_role_setting) GETSTRUCT(tuple);
		Datum		value;
		bool		isnull;

		if (OidIsValid(setting->setrole) || !OidIsValid(setting->setdatabase))
			continue;
		value = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig, RelationGetDescr(settings), &isnull);
		if (!isnull && sets_armed(DatumGetArrayTypeP(value)))
			armed = lappend_oid(armed, setting->setdatabase);
	}
	systable_endscan(scan);
	table_close(settings, AccessShareLock);
	return armed;
}

static void
list_or_disarm(void)
{
	uint64		told = pg_atomic_read_u64(&launcher->told);
	bool		quiet = outbox_copies_quiet();
	int			missing = 0;
	int			n;
	List	   *armed;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	armed = armed_databases();
	OUTBOX_FAULT("list-after-reading");
	n = list_length(armed);
	if (quiet)
		outbox_copies_disarm(armed);
	else
		missing = outbox_bell_listed(armed, told);
	PopActiveSnapshot();
	CommitTransactionCommand();

	if (quiet)
	{
		outbox_copies_silenced(n);
		(void) outbox_bell_listed(NIL, told);
	}
	if (missing > 0)
		ereport(WARNING,
				errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				errmsg("outbox cannot deliver from %d of %d armed databases", missing, n),
				errhint("Increase outbox.max_databases and restart the server."));
}

void
outbox_lister_main(Datum main_arg)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	if (!enter_listing())
		return;
	pin_settings();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(main_arg), InvalidOid, BGWORKER_BYPASS_ALLOWCONN);
	list_or_disarm();
	pg_atomic_fetch_add_u64(&launcher->listed, 1);
}
