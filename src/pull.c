/*
 * pull(), ack(), extend(), nack(): the consumer's side of a pull subscription.
 *
 * The worker says which events are leased; the events themselves are read here (lookup.h): they have been committed before they were leased.
 *
 * ack() and nack() are told the worker at once, which checks the lease, and take effect when the transaction commits.  What happened in a subtransaction that was rolled back is
 * withdrawn before the commit.  The end of the transaction is told without anything that could fail (call.h).
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "call.h"
#include "catalog.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/tuptable.h"
#include "fault.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lookup.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pull.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#define SHORTEST_LEASE ((int64) 100 * 1000)
#define LONGEST_LEASE ((int64) 12 * 3600 * USECS_PER_SEC)
#define LONGEST_RETRY ((int64) 30 * USECS_PER_DAY)

/* An ack or nack of the current transaction. */
typedef struct Settlement
{
	int			number;
	SubTransactionId subxact;	/* of which it is part */
	bool		undone;
	int32		subscription;
} Settlement;

/* The current transaction's; settlements is in TopTransactionContext. */
static OutboxDatabase *database = NULL;
static OutboxTicket ticket;
static List *settlements = NIL;

/* A question with room for so many events, one at least: the answer may name one. */
static OutboxCall *
new_call(OutboxCallOp op, int room)
{
	OutboxCall *call = palloc0(offsetof(OutboxCall, events) + Max(room, 1) * sizeof(OutboxCallEvent));

	call->op = op;
	return call;
}

/* ---- the end of the transaction ---- */

static void
withdraw_undone(void)
{
	ListCell   *cell;

	foreach(cell, settlements)
	{
		Settlement *settlement = lfirst(cell);
		OutboxCall *call;

		if (!settlement->undone)
			continue;
		call = new_call(OUTBOX_CALL_WITHDRAW, 0);
		call->subscription = settlement->subscription;
		call->ticket = ticket;
		call->number = settlement->number;
		outbox_call(database, call);
		pfree(call);
		settlement->undone = false;
	}
}

static void
end_ticket(bool committed)
{
	outbox_call_tell(database, ticket, committed);
	database = NULL;
	settlements = NIL;
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	if (database == NULL)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		OUTBOX_FAULT("settle-before-commit");
			withdraw_undone();
			break;
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					errmsg("cannot PREPARE a transaction that has executed outbox.ack() or outbox.nack()"),
					errdetail("The lease would have to outlive the session and the delivery worker."),
					errhint("Acknowledge in a transaction of its own, after COMMIT PREPARED."));
			break;
		case XACT_EVENT_COMMIT:
		OUTBOX_FAULT_QUIET("settle-after-commit");
			end_ticket(true);
			break;
		case XACT_EVENT_ABORT:
			end_ticket(false);
			break;
		default:
			break;
	}
}

static void
at_subtransaction_end(SubXactEvent event, SubTransactionId subxact, SubTransactionId parent, void *arg)
{
	ListCell   *cell;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(cell, settlements)
	{
		Settlement *settlement = lfirst(cell);

		if (settlement->subxact != subxact)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			settlement->subxact = parent;
		else
			settlement->undone = true;
	}
}

void
outbox_pull_install(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
	RegisterSubXactCallback(at_subtransaction_end, NULL);
}

/* A place for one more settlement of this transaction. */
static Settlement *
new_settlement(OutboxDatabase *of, int32 subscription)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Settlement *settlement = palloc(sizeof(Settlement));

	*settlement = (Settlement) {.number = list_length(settlements) + 1, .subxact = GetCurrentSubTransactionId(), .subscription = subscription};
	if (database == NULL)
	{
		ticket = outbox_call_ticket();
		database = of;
	}
	settlements = lappend(settlements, settlement);
	MemoryContextSwitchTo(old);
	return settlement;
}

/* ---- the subscription ---- */

/* The first columns of outbox.subscription. */
typedef enum SubscriptionColumn
{
	SUBSCRIPTION_ID = 1,
	SUBSCRIPTION_NAME,
	SUBSCRIPTION_KIND
} SubscriptionColumn;

/* As it is now, whatever the transaction's snapshot; false: there is none of this name. */
static bool
read_subscription(text *name, int32 *id, bool *pull)
{
	Oid			schema = outbox_catalog_required()->schema;
	Relation	heap = table_open(get_relname_relid("subscription", schema), AccessShareLock);
	Oid			by_name = get_relname_relid("subscription_name_key", schema);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		isnull;

	ScanKeyEntryInitialize(&key, 0, SUBSCRIPTION_NAME, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ, PointerGetDatum(name));
	scan = systable_beginscan(heap, by_name, OidIsValid(by_name), snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (tuple != NULL)
	{
		*id = DatumGetInt32(heap_getattr(tuple, SUBSCRIPTION_ID, RelationGetDescr(heap), &isnull));
		*pull = strcmp(TextDatumGetCString(heap_getattr(tuple, SUBSCRIPTION_KIND, RelationGetDescr(heap), &isnull)), "pull") == 0;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(heap, AccessShareLock);
	return tuple != NULL;
}

/* The id of the pull subscription with this name. */
static int32
find_subscription(text *name)
{
	bool		pull;
	int32		id;

	if (!read_subscription(name, &id, &pull))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" does not exist", text_to_cstring(name)),
				 errdetail("No subscription has this name."),
				 errhint("Call outbox.subscribe() without a URL to make a pull subscription.")));
	if (!pull)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is not a pull subscription", text_to_cstring(name)),
				 errdetail("It has a URL: its events are pushed there."),
				 errhint("Call outbox.subscribe() without a URL to make a pull subscription.")));
	return id;
}

/* ---- arguments ---- */

static void
refuse_null(FunctionCallInfo fcinfo, int argument, const char *name)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name),
				 errdetail("There is nothing that NULL could stand for."),
				 errhint("Give a value.")));
}

static int64
span_of(const Interval *span)
{
	/* a day has 24 hours, a month 30 days; beyond what any bound permits precision does not matter */
	float8		us = (float8) span->time + ((float8) span->day + (float8) span->month * DAYS_PER_MONTH) * USECS_PER_DAY;

	return us > (float8) 1e15 ? (int64) 1e15 : us < (float8) -1e15 ? (int64) -1e15 : (int64) us;
}

static int64
span_argument(FunctionCallInfo fcinfo, int argument, const char *name, int64 lowest, int64 highest, const char *bounds)
{
	int64		us = span_of(PG_GETARG_INTERVAL_P(argument));

	if (us < lowest || us > highest)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for \"%s\"", name),
				 errdetail("It is not between %s.", bounds),
				 errhint("Choose a value between %s.", bounds)));
	return us;
}

/* A call with these ids; NULL: all of the lease. */
static OutboxCall *
call_about(FunctionCallInfo fcinfo, int argument, OutboxCallOp op)
{
	OutboxCall *call;
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	if (PG_ARGISNULL(argument))
	{
		call = new_call(op, 1);
		call->all = true;
		return call;
	}
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argument), UUIDOID, UUID_LEN, false, TYPALIGN_CHAR, &elements, &nulls, &n);
	if (n > OUTBOX_CALL_EVENTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("too many event ids"),
				 errdetail("The list has %d elements; at most %d are permitted.", n, OUTBOX_CALL_EVENTS),
				 errhint("Leave ids out (NULL) to settle the whole lease.")));
	call = new_call(op, n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("ids must not contain null"),
					 errdetail("Element %d of the list is NULL.", i + 1),
					 errhint("List ids of events that were pulled, or give NULL instead of the list for all of them.")));
		call->events[i].id = *DatumGetUUIDP(elements[i]);
	}
	call->n = n;
	return call;
}

static char *
uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* ---- asking ---- */

static OutboxDatabase *
this_database(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
	return outbox_bell_database(outbox_catalog_required()->extension);
}

static void
ask(OutboxDatabase *of, OutboxCall *call, text *name)
{
	outbox_call(of, call);
	switch (call->answer)
	{
		case OUTBOX_ANSWER_DONE:
			return;
		case OUTBOX_ANSWER_UNKNOWN:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the delivery worker does not know subscription \"%s\" yet", text_to_cstring(name)),
					 errdetail("It has not read the subscription, or the transaction that made it has not committed."),
					 errhint("Try again in a moment.")));
			break;
		case OUTBOX_ANSWER_STALE:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("lease %s of subscription \"%s\" is not held any more", uuid_text(&call->token), text_to_cstring(name)),
					 errdetail("It expired, was settled, or was lost when the delivery worker was started anew; its events are delivered to whoever pulls next."),
					 errhint("Pull again. Work that takes long needs a longer lease, or outbox.extend().")));
			break;
		case OUTBOX_ANSWER_FOREIGN:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("event %s is not in lease %s of subscription \"%s\"", uuid_text(&call->events[0].id), uuid_text(&call->token), text_to_cstring(name)),
					 errdetail("It was not pulled with it, or has been settled. Nothing of this call was done."),
					 errhint("Settle each event once, with the token that came with it.")));
			break;
		case OUTBOX_ANSWER_TAKEN:
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("event %s is being settled by another transaction", uuid_text(&call->events[0].id)),
					 errdetail("That transaction has acknowledged it with the same token, and has not ended. Nothing of this call was done."),
					 errhint("Use a token in one session at a time.")));
			break;
	}
}

/* ---- pull ---- */

#define PULLED_COLUMNS 13
#define ROWS_BLOCK (16 * 1024)

/* Rows on their way to the caller, in the order of the lease, which is as a rule that of the log. */
typedef struct Rows
{
	const OutboxCall *call;
	ReturnSetInfo *result;
	int			next;			/* all before this one have been returned */
	MinimalTuple *kept;			/* those that came too early */
} Rows;

static void
make_row(int number, const OutboxStoredEvent *event, void *arg)
{
	Rows	   *rows = arg;
	const OutboxCall *call = rows->call;
	Datum		values[PULLED_COLUMNS];
	bool		nulls[PULLED_COLUMNS] = {false};

	values[0] = event->id;
	memcpy(&values[1], event->columns, OUTBOX_STORED_COLUMNS * sizeof(Datum));
	memcpy(&nulls[1], event->nulls, OUTBOX_STORED_COLUMNS * sizeof(bool));
	values[9] = event->created_at;
	values[10] = Int32GetDatum(call->events[number].attempts + 1);
	values[11] = UUIDPGetDatum(&call->token);
	values[12] = TimestampTzGetDatum(call->until);
	if (number == rows->next)
	{
		tuplestore_putvalues(rows->result->setResult, rows->result->setDesc, values, nulls);
		rows->next++;
	}
	else
		rows->kept[number] = OutboxFormMinimalTuple(rows->result->setDesc, values, nulls);
}

/* An event that is gone has no row. */
static void
return_events(ReturnSetInfo *result, const OutboxCall *call)
{
	Rows		rows = {.call = call, .result = result, .kept = palloc0(call->n * sizeof(MinimalTuple))};
	pg_uuid_t  *places = palloc(call->n * sizeof(pg_uuid_t));
	TupleTableSlot *slot = MakeSingleTupleTableSlot(result->setDesc, &TTSOpsMinimalTuple);

	for (int i = 0; i < call->n; i++)
		places[i] = call->events[i].id;
	outbox_lookup_events(places, call->n, make_row, &rows);
	for (int i = rows.next; i < call->n; i++)
	{
		if (rows.kept[i] != NULL)
			tuplestore_puttupleslot(result->setResult, ExecStoreMinimalTuple(rows.kept[i], slot, false));
	}
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Rows go into the caller's result.  Their memory is of its own, in small blocks: in the query's, whose blocks double, a hundred rows go just past what malloc keeps between two calls, and
 * every call would get and give back pages of the system's.  All calls of a query share it.
 */
static ReturnSetInfo *
begin_rows(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext caller;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);	/* to look up the OUT arguments takes longer than the call */
	tuplestore_end(result->setResult);
	if (fcinfo->flinfo->fn_extra == NULL)
		fcinfo->flinfo->fn_extra = AllocSetContextCreate(fcinfo->flinfo->fn_mcxt, "outbox pull", 0, ROWS_BLOCK, ROWS_BLOCK);
	caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_extra);
	result->setResult = tuplestore_begin_heap((result->allowedModes & SFRM_Materialize_Random) != 0, false, work_mem);
	MemoryContextSwitchTo(caller);
	return result;
}

/* pull(subscription text, max_events integer, lease interval) → (event_id, type, key, …, attempt, token, leased_until): see the install script. */
PG_FUNCTION_INFO_V1(outbox_pull);
Datum
outbox_pull(PG_FUNCTION_ARGS)
{
	OutboxDatabase *of = this_database("outbox.pull()");
	ReturnSetInfo *result;
	OutboxCall *call;
	int			most;

	refuse_null(fcinfo, 0, "subscription");
	refuse_null(fcinfo, 1, "max_events");
	refuse_null(fcinfo, 2, "lease");
	most = PG_GETARG_INT32(1);
	if (most < 1 || most > OUTBOX_CALL_EVENTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for \"%s\"", "max_events"),
				 errdetail("%d is not between 1 and %d.", most, OUTBOX_CALL_EVENTS),
				 errhint("Choose a value between 1 and %d.", OUTBOX_CALL_EVENTS)));
	call = new_call(OUTBOX_CALL_LEASE, most);
	call->most = most;
	call->lease = span_argument(fcinfo, 2, "lease", SHORTEST_LEASE, LONGEST_LEASE, "100 ms and 12 h");
	call->subscription = find_subscription(PG_GETARG_TEXT_PP(0));
	call->token = *DatumGetUUIDP(DirectFunctionCall1(gen_random_uuid, (Datum) 0));
	result = begin_rows(fcinfo);

	ask(of, call, PG_GETARG_TEXT_PP(0));
	if (call->n > 0)
		return_events(result, call);
	return (Datum) 0;
}

/* ---- ack, nack, extend ---- */

/* An ack or nack: what both are given; the rest is the caller's to set. */
static OutboxCall *
settlement_arguments(FunctionCallInfo fcinfo, OutboxCallOp op)
{
	OutboxCall *call;

	refuse_null(fcinfo, 0, "subscription");
	refuse_null(fcinfo, 2, "token");
	call = call_about(fcinfo, 1, op);
	call->token = *PG_GETARG_UUID_P(2);
	return call;
}

static int64
settle(OutboxDatabase *of, OutboxCall *call, text *name)
{
	Settlement *settlement;

	call->subscription = find_subscription(name);
	if (!call->all && call->n == 0)
		return 0;
	if (database != NULL)
		withdraw_undone();		/* what is settled now may have been before, in a subtransaction that was rolled back */
	settlement = new_settlement(of, call->subscription);
	call->ticket = ticket;
	call->number = settlement->number;
	ask(of, call, name);
	return call->settled;
}

/* ack(subscription text, ids uuid[], token uuid) → bigint: how many are settled, when this transaction commits. */
PG_FUNCTION_INFO_V1(outbox_ack);
Datum
outbox_ack(PG_FUNCTION_ARGS)
{
	OutboxDatabase *of = this_database("outbox.ack()");
	OutboxCall *call = settlement_arguments(fcinfo, OUTBOX_CALL_ACK);

	PG_RETURN_INT64(settle(of, call, PG_GETARG_TEXT_PP(0)));
}

/* nack(subscription text, ids uuid[], token uuid, retry_in interval, reason text) → bigint: the same; retry_in NULL: by the subscription's retry policy. */
PG_FUNCTION_INFO_V1(outbox_nack);
Datum
outbox_nack(PG_FUNCTION_ARGS)
{
	OutboxDatabase *of = this_database("outbox.nack()");
	OutboxCall *call = settlement_arguments(fcinfo, OUTBOX_CALL_NACK);

	call->retry_in = PG_ARGISNULL(3) ? -1 : span_argument(fcinfo, 3, "retry_in", 0, LONGEST_RETRY, "0 and 30 d");
	if (!PG_ARGISNULL(4))
	{
		char	   *reason = text_to_cstring(PG_GETARG_TEXT_PP(4));
		int			size = pg_mbcliplen(reason, strlen(reason), OUTBOX_CALL_REASON - 1);

		memcpy(call->reason, reason, size);
	}
	PG_RETURN_INT64(settle(of, call, PG_GETARG_TEXT_PP(0)));
}

/* extend(subscription text, token uuid, lease interval) → timestamptz: until when it is held now; at once, whatever becomes of this transaction. */
PG_FUNCTION_INFO_V1(outbox_extend);
Datum
outbox_extend(PG_FUNCTION_ARGS)
{
	OutboxDatabase *of = this_database("outbox.extend()");
	OutboxCall *call = new_call(OUTBOX_CALL_EXTEND, 0);

	refuse_null(fcinfo, 0, "subscription");
	refuse_null(fcinfo, 1, "token");
	refuse_null(fcinfo, 2, "lease");
	call->token = *PG_GETARG_UUID_P(1);
	call->lease = span_argument(fcinfo, 2, "lease", SHORTEST_LEASE, LONGEST_LEASE, "100 ms and 12 h");
	call->subscription = find_subscription(PG_GETARG_TEXT_PP(0));
	ask(of, call, PG_GETARG_TEXT_PP(0));
	PG_RETURN_TIMESTAMPTZ(call->until);
}
