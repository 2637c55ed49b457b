/*
 * CALL wait_delivered(): waiting until an event is delivered.
 *
 * The answer is event_status()'s, so it is known here when the worker has recorded it.  Between two looks the session has no snapshot and holds no lock: it has committed, which
 * is why this is a procedure, and sleeps on a condition variable that the worker rings after each recording.  Preparing to sleep before looking means that no recording is missed.
 */
#include "postgres.h"

#include "access/xact.h"
#include "bell.h"
#include "catalog.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "settings.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/wait_event.h"

/* What rings nobody (cancel() of a scheduled event, a worker that is not there) is seen this late. */
#define LOOK_MS 5000

typedef enum State
{
	STATE_WAITING,
	STATE_DELIVERED,
	STATE_NEVER
} State;

static void
check_arguments(FunctionCallInfo fcinfo)
{
	static const char *const names[] = {"id", "timeout"};

	for (int i = 0; i < lengthof(names); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", names[i]),
					 errdetail("wait_delivered() needs the event to wait for, and how long."),
					 errhint("Use for instance CALL outbox.wait_delivered('...', '10 s').")));
	}
}

static TimestampTz
end_of_waiting(Datum timeout)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz end = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now), timeout));

	if (end < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative"),
				 errdetail("It says how long to wait."),
				 errhint("Use 0 to look without waiting.")));
	return end;
}

/* It commits: only where that is permitted, and only if there is nothing to commit. */
static void
check_context(FunctionCallInfo fcinfo)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) || castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("wait_delivered() cannot be called in a transaction block"),
				 errdetail("An event is delivered after its transaction has committed, and waiting must not hold a snapshot."),
				 errhint("Commit, then use CALL as a statement of its own.")));
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("wait_delivered() cannot be called in a transaction that has written something"),
				 errdetail("Waiting would commit it; and what it enqueued cannot be delivered before that."),
				 errhint("Commit first.")));
}

/* _delivered(id): with the owner's rights, whatever the caller's. */
static State
look(Oid schema, const pg_uuid_t *id)
{
	Oid			argument = UUIDOID;
	Oid			function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum("_delivered"),
										   PointerGetDatum(buildoidvector(&argument, 1)), ObjectIdGetDatum(schema));
	LOCAL_FCINFO(call, 1);
	FmgrInfo	info;
	Datum		delivered;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "outbox look", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	State		state;

	if (!OidIsValid(function))
		elog(ERROR, "function %s is missing", "_delivered");
	old = MemoryContextSwitchTo(context);
	PushActiveSnapshot(GetTransactionSnapshot());
	fmgr_info(function, &info);
	InitFunctionCallInfoData(*call, &info, 1, InvalidOid, NULL, NULL);
	call->args[0].value = UUIDPGetDatum(id);
	call->args[0].isnull = false;
	delivered = FunctionCallInvoke(call);
	state = call->isnull ? STATE_WAITING : DatumGetBool(delivered) ? STATE_DELIVERED : STATE_NEVER;
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return state;
}

static void
stop_waiting(int code, Datum arg)
{
	OutboxDatabase *database = (OutboxDatabase *) DatumGetPointer(arg);

	ConditionVariableCancelSleep();
	pg_atomic_fetch_sub_u32(&database->awaited, 1);
}

/* Without a log of all attempts only cursors tell, which the worker then writes sooner than usual. */
static void
sleep_until_recorded(OutboxDatabase *database, long ms)
{
	pg_atomic_fetch_add_u32(&database->awaited, 1);
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(database));
	{
		if (outbox_attempt_log != OUTBOX_ATTEMPTS_ALL)
			outbox_bell_ring(database, OUTBOX_RING_CALLS);
		(void) ConditionVariableTimedSleep(&database->recorded, ms, OutboxWaitEvent("OutboxWaitDelivered"));
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(database));
	pg_atomic_fetch_sub_u32(&database->awaited, 1);
}

/* On a busy server something is recorded all the time: who waits for long looks less often, and takes a tenth of a processor at most. */
static void
rest(long ms)
{
	if (ms <= 0)
		return;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms, OutboxWaitEvent("OutboxWaitDelivered"));
	ResetLatch(MyLatch);
}

static bool
wait_until(Oid schema, OutboxDatabase *database, const pg_uuid_t *id, TimestampTz end)
{
	State		state;

	for (int looks = 0;; looks++)
	{
		TimestampTz begin_at = GetCurrentTimestamp();
		TimestampTz now;

		CHECK_FOR_INTERRUPTS();
		ConditionVariablePrepareToSleep(&database->recorded);
		state = look(schema, id);
		now = GetCurrentTimestamp();
		if (state != STATE_WAITING || now >= end)
			break;
		SPI_commit();			/* lets the snapshot go, and locks */
		sleep_until_recorded(database, Max(1, Min(LOOK_MS, TimestampDifferenceMilliseconds(now, end))));

		/* not prepared meanwhile: what is recorded now is seen by the look that follows */
		ConditionVariableCancelSleep();
		rest(Min((now - begin_at) / 1000 * Min(looks, 10), TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end)));
	}
	ConditionVariableCancelSleep();
	return state == STATE_DELIVERED;
}

/*
 * wait_delivered(id uuid, timeout interval, INOUT delivered boolean), a procedure: true once every matching subscription has the event; false at the timeout, or at once when one will not get it.  Errors: 25001 in
 * a transaction block, or after writing; 42704 for an unknown id; 22004, 22023.
 */
PG_FUNCTION_INFO_V1(outbox_wait_delivered);
Datum
outbox_wait_delivered(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	pg_uuid_t	id;
	TimestampTz end;
	TupleDesc	descriptor;
	OutboxDatabase *database;
	Datum		value;
	bool		null = false;
	HeapTuple	tuple;

	check_arguments(fcinfo);
	check_context(fcinfo);
	id = *PG_GETARG_UUID_P(0);
	end = end_of_waiting(PG_GETARG_DATUM(1));
	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	descriptor = BlessTupleDesc(descriptor);
	database = outbox_bell_database(outbox_catalog_required()->extension);

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	value = BoolGetDatum(wait_until(get_func_namespace(fcinfo->flinfo->fn_oid), database, &id, end));
	SPI_finish();

	MemoryContextSwitchTo(context);
	tuple = heap_form_tuple(descriptor, &value, &null);
	PG_RETURN_DATUM(HeapTupleGetDatum(tuple));
}
